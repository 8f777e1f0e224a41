// y[b] = a[b] x[b]: (m, k) (k, n) to (m, n), operands read by strides so that either may be stored transposed.
// Without workgroup memory or barriers, for software adapters: 64 invocations along the columns, 8 rows x 8 columns each.
// Slots are filled for each way of storing.
// Relies on: up to 64 invocations, 0 bytes of workgroup memory, subgroups: no; f16: unpacked; bindings aligned to 4 bytes.
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

@group(0) @binding(0) var<uniform> params: Params;
//#slot bindings
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// The end of a sum: the element that stands at i.
fn keep(i: u32, sum: f32) {
    y[i] = sum;
}
//#end

//#slot access
fn load_a(i: u32) -> f32 {
    return a[i];
}

fn load_x(i: u32) -> f32 {
    return x[i];
}
//#end

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let row0 = group.y * 8u;
    //#slot counted
    //#end
    // Invocation l of a group takes columns l, l + 64, ..: neighbours stay neighbours in memory.
    let col0 = group.x * 512u + local.x;
    if (col0 >= params.n) {
        return;
    }
    let last_row = params.m - 1u;
    let last_col = params.n - 1u;
    let columns = min((params.n - col0 + 63u) / 64u, 8u);
    for (var batch = group.z; batch < params.batch; batch = batch + groups.z) {
        let a_base = batch * params.m * params.k;
        let x_base = batch * params.k * params.n;
        let y_base = batch * params.m * params.n;
        for (var j = 0u; j < columns; j = j + 1u) {
            let col = col0 + j * 64u;
            var sum0 = vec4<f32>(0.0);
            var sum1 = vec4<f32>(0.0);
            //#twice terms
            var x_at = x_base + min(col, last_col) * params.x_col;
            var a0 = a_base + min(row0, last_row) * params.a_row;
            var a1 = a_base + min(row0 + 1u, last_row) * params.a_row;
            var a2 = a_base + min(row0 + 2u, last_row) * params.a_row;
            var a3 = a_base + min(row0 + 3u, last_row) * params.a_row;
            var a4 = a_base + min(row0 + 4u, last_row) * params.a_row;
            var a5 = a_base + min(row0 + 5u, last_row) * params.a_row;
            var a6 = a_base + min(row0 + 6u, last_row) * params.a_row;
            var a7 = a_base + min(row0 + 7u, last_row) * params.a_row;
            var step = 0u;
            for (var k = 0u; k < params.k; k = k + 1u) {
                let right = load_x(x_at);
                let upper = vec4<f32>(load_a(a0 + step), load_a(a1 + step), load_a(a2 + step), load_a(a3 + step));
                let lower = vec4<f32>(load_a(a4 + step), load_a(a5 + step), load_a(a6 + step), load_a(a7 + step));
                sum0 = sum0 + upper * right;
                sum1 = sum1 + lower * right;
                x_at = x_at + params.x_row;
                step = step + params.a_col;
            }
            //#end twice
            for (var i = 0u; i < 4u; i = i + 1u) {
                if (row0 + i < params.m) {
                    keep(y_base + (row0 + i) * params.n + col, sum0[i]);
                }
                if (row0 + 4u + i < params.m) {
                    keep(y_base + (row0 + 4u + i) * params.n + col, sum1[i]);
                }
            }
        }
    }
}
