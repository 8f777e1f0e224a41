// g (e^x / sum e^x - [column is label]) of each row of (rows, n), zero where the label is negative; one workgroup a row.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/math.wgsl

override SIZE: u32 = 64;

struct Params {
    rows: u32,
    width: u32,
    n: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
    unused3: u32,
    unused4: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<i32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> g: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * params.width;
    if (row >= params.rows) {
        return;
    }
    let base = row * params.n;
    let label = labels[row];
    let scale = g[row];
    let log_sum = lse[row];
    for (var i = lane; i < params.n; i = i + SIZE) {
        var value = 0.0;
        if (label >= 0) {
            let hit = select(0.0, 1.0, i == min(u32(label), params.n - 1u));
            value = scale * (exp_(x[base + i] - log_sum) - hit);
        }
        dx[base + i] = value;
    }
}
