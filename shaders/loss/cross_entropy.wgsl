// log sum e^x - x[label] of each row of (rows, n), zero where the label is negative; one workgroup a row.
// Relies on: up to 256 invocations, 1024 bytes of workgroup memory, subgroups: 4, 8, 16, 32, 64, 128; f16: no; bindings aligned to 4 bytes.
//#import shared/math.wgsl
//#import shared/workgroup_reductions.wgsl

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
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * params.width;
    if (row >= params.rows) {
        return;
    }
    let base = row * params.n;
    var top = x[base];
    for (var i = lane; i < params.n; i = i + SIZE) {
        top = max(top, x[base + i]);
    }
    top = largest(lane, top);
    var sum = 0.0;
    for (var i = lane; i < params.n; i = i + SIZE) {
        sum = sum + exp_(x[base + i] - top);
    }
    let log_sum = top + log_(total(lane, sum));
    if (lane == 0u) {
        let label = labels[row];
        lse[row] = log_sum;
        var value = 0.0;
        if (label >= 0) {
            value = log_sum - x[base + min(u32(label), params.n - 1u)];
        }
        loss[row] = value;
    }
}
