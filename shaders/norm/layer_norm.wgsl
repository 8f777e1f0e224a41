// (x - mean) rstd gain + bias over the last axis of (rows, n); one workgroup a row.
// Relies on: up to 256 invocations, 1024 bytes of workgroup memory, subgroups: 4, 8, 16, 32, 64, 128; f16: no; bindings aligned to 4 bytes.
//#import shared/workgroup_reductions.wgsl

struct Params {
    rows: u32,
    width: u32,
    n: u32,
    eps: f32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
    unused3: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> mean: array<f32>;
@group(0) @binding(6) var<storage, read_write> rstd: array<f32>;

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * params.width;
    if (row >= params.rows) {
        return;
    }
    let base = row * params.n;
    let count = f32(params.n);
    var sum = 0.0;
    for (var i = lane; i < params.n; i = i + SIZE) {
        sum = sum + x[base + i];
    }
    let centre = total(lane, sum) / count;
    var square = 0.0;
    for (var i = lane; i < params.n; i = i + SIZE) {
        let d = x[base + i] - centre;
        square = square + d * d;
    }
    let scale = 1.0 / sqrt(total(lane, square) / count + params.eps);
    for (var i = lane; i < params.n; i = i + SIZE) {
        y[base + i] = (x[base + i] - centre) * scale * gain[i] + bias[i];
    }
    if (lane == 0u) {
        mean[row] = centre;
        rstd[row] = scale;
    }
}
