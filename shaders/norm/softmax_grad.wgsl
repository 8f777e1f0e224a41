// y (g - sum g y) over the last axis of (rows, n); one workgroup a row.
// Relies on: up to 256 invocations, 1024 bytes of workgroup memory, subgroups: 4, 8, 16, 32, 64, 128; f16: no; bindings aligned to 4 bytes.
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
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * params.width;
    if (row >= params.rows) {
        return;
    }
    let base = row * params.n;
    var dot = 0.0;
    for (var i = lane; i < params.n; i = i + SIZE) {
        dot = dot + y[base + i] * g[base + i];
    }
    dot = total(lane, dot);
    for (var i = lane; i < params.n; i = i + SIZE) {
        dx[base + i] = y[base + i] * (g[base + i] - dot);
    }
}
