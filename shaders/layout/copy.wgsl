// Strided copy: output[dst_base + sum c dst] = input[src_base + sum c src] for every index c of dims.
// Elements are four bytes of any type.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    n: u32,
    width: u32,
    src_base: u32,
    dst_base: u32,
    dims: array<vec4<u32>, 2>,
    src: array<vec4<u32>, 2>,
    dst: array<vec4<u32>, 2>,
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
    var rest = i;
    var from_at = params.src_base;
    var to_at = params.dst_base;
    // Axes stand innermost last; leading ones of extent 1 end the loop once nothing is left.
    for (var d = 7u; rest > 0u; d = d - 1u) {
        let dim = params.dims[d / 4u][d % 4u];
        let c = rest % dim;
        rest = rest / dim;
        from_at = from_at + c * params.src[d / 4u][d % 4u];
        to_at = to_at + c * params.dst[d / 4u][d % 4u];
    }
    output[to_at] = input[from_at];
}
