// Sum (mode 0), maximum (mode 1) or sum of squares (mode 2) of each row of (rows, n); one workgroup a row. Words are floats or integers.
// Relies on: up to 256 invocations, 1024 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/words.wgsl

override SIZE: u32 = 64;

struct Params {
    rows: u32,
    width: u32,
    n: u32,
    mode: u32,
    is_float: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<u32>;

var<workgroup> part: array<u32, SIZE>;

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * params.width;
    if (row >= params.rows) {
        return;
    }
    let base = row * params.n;
    // A row's first element stands in where an invocation has none; a sum then starts from nothing instead.
    var total = select(0u, input[base], params.mode == 1u);
    for (var i = lane; i < params.n; i = i + SIZE) {
        total = join(total, joined(input[base + i], params.mode), params.mode, params.is_float);
    }
    part[lane] = total;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half = half / 2u) {
        if (lane < half) {
            part[lane] = join(part[lane], part[lane + half], params.mode, params.is_float);
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        output[row] = part[0];
    }
}
