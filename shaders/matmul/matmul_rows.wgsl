// y[b] = a[b] x[b]: (m, k) (k, n) to (m, n), k and n divisible by four; either operand may be stored transposed, a where m is
// divisible by four too.
// Without workgroup memory or barriers, for software adapters: LX x LY invocations a workgroup, ROWS rows x COLUMNS vec4
// each, four steps of k at a time. Slots are filled for each tile and each way of storing.
// Relies on: up to 32 invocations, 0 bytes of workgroup memory, subgroups: 4, 8, 16, 32; f16: unpacked; bindings aligned to 16 bytes.
//#import shared/halves.wgsl
//#import shared/math.wgsl

//#slot counts
//#end

struct Params {
    //#slot chunk
    //#end
    m: u32,
    n: u32,
    k: u32,
    batch: u32,
    a_row: u32,
    a_col: u32,
    x_row: u32,
    x_col: u32,
    more: u32,
    more_a_row: u32,
    more_a_col: u32,
    more_x_row: u32,
    more_x_col: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
}

override LX: u32 = 16;
override LY: u32 = 1;
override ROWS: u32 = 1;
override COLUMNS: u32 = 1;

@group(0) @binding(0) var<uniform> params: Params;
//#slot bindings
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

// The end of a sum: the vec4 that stands at i.
fn keep(i: u32, sum: vec4<f32>) {
    y[i] = sum;
}
//#end

//#slot access
fn load_a(i: u32) -> vec4<f32> {
    return a[i];
}

fn load_x(i: u32) -> vec4<f32> {
    return x[i];
}
//#end

@compute @workgroup_size(LX, LY)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    //#slot builtins
    //#end
) {
    let n4 = params.n / 4u;
    let k4 = params.k / 4u;
    let row0 = (group.y * LY + local.y) * ROWS;
    //#slot counted
    //#end
    let col0 = group.x * LX * COLUMNS + local.x;
    let last = params.m - 1u;
    for (var batch = group.z; batch < params.batch; batch = batch + groups.z) {
        let a_base = batch * params.m * k4;
        // Invocations beyond the edge compute what is there again, and keep nothing of it.
        //#slot accumulators
        let at0 = min(col0, n4 - 1u);
        var c0_0 = vec4<f32>(0.0);
        //#end
        //#twice terms
        let x_base = batch * params.k * n4;
        var at = x_base;
        //#slot begins
        let a0 = a_base + min(row0, last) * k4;
        //#end
        for (var k = 0u; k < k4; k = k + 1u) {
            //#slot multiply
            let v0 = load_a(a0 + k);
            let x0_0 = load_x(at + at0);
            c0_0 = fma(vec4<f32>(v0.x), x0_0, c0_0);
            let x1_0 = load_x(at + n4 + at0);
            c0_0 = fma(vec4<f32>(v0.y), x1_0, c0_0);
            let x2_0 = load_x(at + 2u * n4 + at0);
            c0_0 = fma(vec4<f32>(v0.z), x2_0, c0_0);
            let x3_0 = load_x(at + 3u * n4 + at0);
            c0_0 = fma(vec4<f32>(v0.w), x3_0, c0_0);
            //#end
            at = at + 4u * n4;
        }
        //#end twice
        let y_base = batch * params.m * n4;
        //#slot stores
        if (row0 < params.m && col0 < n4) {
            keep(y_base + row0 * n4 + col0, c0_0);
        }
        //#end
    }
}
