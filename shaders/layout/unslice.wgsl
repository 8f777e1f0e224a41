// Along an axis of extent len: output[start + i * step] = input[i], zeros elsewhere. Elements are four bytes of any type.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    n: u32,
    width: u32,
    len: u32,
    taken: u32,
    inner: u32,
    start: i32,
    step: i32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.n) {
        return;
    }
    let inner = i % params.inner;
    let row = i / params.inner;
    let outer = row / params.len;
    let distance = i32(row % params.len) - params.start;
    let at = distance / params.step;
    var word = 0u;
    if (at >= 0 && at < i32(params.taken) && at * params.step == distance) {
        word = input[(outer * params.taken + u32(at)) * params.inner + inner];
    }
    output[i] = word;
}
