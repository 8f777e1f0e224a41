// Running sums along the middle axis of (outer, n, inner); one invocation a column. Words are floats or integers.
// Relies on: up to 64 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    columns: u32,
    width: u32,
    n: u32,
    inner: u32,
    exclusive: u32,
    backward: u32,
    is_float: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<u32>;

fn plus(a: u32, b: u32) -> u32 {
    if (params.is_float != 0u) {
        return bitcast<u32>(bitcast<f32>(a) + bitcast<f32>(b));
    }
    return a + b;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.columns) {
        return;
    }
    let outer = i / params.inner;
    let inner = i % params.inner;
    var sum = 0u;
    for (var step = 0u; step < params.n; step = step + 1u) {
        let k = select(step, params.n - 1u - step, params.backward != 0u);
        let at = (outer * params.n + k) * params.inner + inner;
        let next = plus(sum, input[at]);
        output[at] = select(next, sum, params.exclusive != 0u);
        sum = next;
    }
}
