// Zeros in the rows of dx, and in their losses, whose label is negative.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    total: u32,
    width: u32,
    n: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
    unused3: u32,
    unused4: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> labels: array<i32>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.total) {
        return;
    }
    let row = i / params.n;
    if (labels[row] >= 0) {
        return;
    }
    dx[i] = 0.0;
    if (i % params.n == 0u) {
        loss[row] = 0.0;
    }
}
