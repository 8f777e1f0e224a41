// e^x / sum e^x over the last axis of (rows, n); one workgroup a row. With safe, a row that is -inf throughout gives zeros.
// Relies on: up to 256 invocations, 1024 bytes of workgroup memory, subgroups: 4, 8, 16, 32, 64, 128; f16: no; bindings aligned to 4 bytes.
//#import shared/math.wgsl
//#import shared/workgroup_reductions.wgsl

struct Params {
    rows: u32,
    width: u32,
    n: u32,
    safe: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
    unused3: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

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
    let empty = params.safe != 0u && bitcast<u32>(top) == 0xff800000u;
    var sum = 0.0;
    for (var i = lane; i < params.n; i = i + SIZE) {
        let e = select(exp_(x[base + i] - top), 0.0, empty);
        y[base + i] = e;
        sum = sum + e;
    }
    sum = total(lane, sum);
    let scale = select(1.0 / sum, 0.0, empty);
    for (var i = lane; i < params.n; i = i + SIZE) {
        y[base + i] = y[base + i] * scale;
    }
}
