// With h = g gain: rstd h - x rstd^3 mean(h x); one workgroup a row. The
// slot `result` is filled where something is added.
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
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read> rstd: array<f32>;
@group(0) @binding(4) var<storage, read> g: array<f32>;
//#slot result
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

fn keep(i: u32, value: f32) {
    dx[i] = value;
}
//#end

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * params.width;
    if (row >= params.rows) {
        return;
    }
    let base = row * params.n;
    let scale = rstd[row];
    var dot = 0.0;
    for (var i = lane; i < params.n; i = i + SIZE) {
        dot = dot + g[base + i] * gain[i] * x[base + i];
    }
    let pull = scale * scale * scale * total(lane, dot) / f32(params.n);
    for (var i = lane; i < params.n; i = i + SIZE) {
        keep(base + i, scale * g[base + i] * gain[i] - x[base + i] * pull);
    }
}
