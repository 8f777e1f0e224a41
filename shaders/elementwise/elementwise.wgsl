// Elementwise program: invocation i computes element i of every output. Slots are filled for each program;
// as it stands this is the identity.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/math.wgsl

struct Params {
    n: u32,
    width: u32,
    unused0: u32,
    unused1: u32,
    dims: array<vec4<u32>, 2>,
    //#slot strides
    //#end
}

@group(0) @binding(0) var<uniform> params: Params;
//#slot bindings
@group(0) @binding(1) var<storage, read> i0: array<f32>;
@group(0) @binding(2) var<storage, read_write> o0: array<f32>;
//#end

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.n) {
        return;
    }
    //#slot body
    o0[i] = i0[i];
    //#end
}
