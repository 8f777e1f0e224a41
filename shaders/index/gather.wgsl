// output[o, k, i] = input[o, index[k], i]; negative indices count from the end, indices beyond either end are clamped.
// Elements are four bytes of any type, or halves that become f32.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: unpacked; bindings aligned to 4 bytes.
//#import shared/halves.wgsl

// Whether elements of the input are packed halves.
override HALVES: bool = false;

struct Params {
    total: u32,
    width: u32,
    n: u32,
    k: u32,
    inner: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read> index: array<i32>;
@group(0) @binding(3) var<storage, read_write> output: array<u32>;

// The i-th element.
fn element(i: u32) -> u32 {
    if (HALVES) {
        return bitcast<u32>(unpack_half(input[i / 2u], i));
    }
    return input[i];
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.total) {
        return;
    }
    let inner = i % params.inner;
    let row = i / params.inner;
    let outer = row / params.k;
    let n = i32(params.n);
    var at = index[row % params.k];
    if (at < 0) {
        at = at + n;
    }
    at = clamp(at, 0, n - 1);
    output[i] = element((outer * params.n + u32(at)) * params.inner + inner);
}
