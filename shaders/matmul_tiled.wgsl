// y[b] = a[b] x[b]: (m, k) (k, n) to (m, n), operands read by strides so that either may be stored transposed.
// A workgroup of 16 x 16 computes a 64 x 64 tile through workgroup memory, 4 x 4 results an invocation.

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    batch: u32,
    a_row: u32,
    a_col: u32,
    x_row: u32,
    x_col: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// Rows of a, and columns of x, each DEPTH deep; a row of a holds one more so that columns fall into different banks.
var<workgroup> a_tile: array<f32, 1088>;
var<workgroup> x_tile: array<f32, 1024>;

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let row0 = group.y * TILE;
    let col0 = group.x * TILE;
    for (var batch = group.z; batch < params.batch; batch = batch + groups.z) {
        let a_base = batch * params.m * params.k;
        let x_base = batch * params.k * params.n;
        var sum: array<vec4<f32>, 4>;
        for (var i = 0u; i < 4u; i = i + 1u) {
            sum[i] = vec4<f32>(0.0);
        }
        for (var k0 = 0u; k0 < params.k; k0 = k0 + DEPTH) {
            // Neighbouring invocations read neighbouring elements, whichever way the operand is stored.
            for (var e = lane; e < 1024u; e = e + 256u) {
                var r = e / DEPTH;
                var c = e % DEPTH;
                if (params.a_col != 1u) {
                    r = e % TILE;
                    c = e / TILE;
                }
                var value = 0.0;
                if (row0 + r < params.m && k0 + c < params.k) {
                    value = a[a_base + (row0 + r) * params.a_row + (k0 + c) * params.a_col];
                }
                a_tile[r * 17u + c] = value;
            }
            for (var e = lane; e < 1024u; e = e + 256u) {
                var r = e / TILE;
                var c = e % TILE;
                if (params.x_col != 1u) {
                    r = e % DEPTH;
                    c = e / DEPTH;
                }
                var value = 0.0;
                if (k0 + r < params.k && col0 + c < params.n) {
                    value = x[x_base + (k0 + r) * params.x_row + (col0 + c) * params.x_col];
                }
                x_tile[r * TILE + c] = value;
            }
            workgroupBarrier();
            for (var d = 0u; d < DEPTH; d = d + 1u) {
                let at = d * TILE + local.x * 4u;
                let right = vec4<f32>(x_tile[at], x_tile[at + 1u], x_tile[at + 2u], x_tile[at + 3u]);
                let left = local.y * 4u * 17u + d;
                sum[0] = sum[0] + a_tile[left] * right;
                sum[1] = sum[1] + a_tile[left + 17u] * right;
                sum[2] = sum[2] + a_tile[left + 34u] * right;
                sum[3] = sum[3] + a_tile[left + 51u] * right;
            }
            workgroupBarrier();
        }
        let y_base = batch * params.m * params.n;
        for (var i = 0u; i < 4u; i = i + 1u) {
            let r = row0 + local.y * 4u + i;
            for (var j = 0u; j < 4u; j = j + 1u) {
                let c = col0 + local.x * 4u + j;
                if (r < params.m && c < params.n) {
                    y[y_base + r * params.n + c] = sum[i][j];
                }
            }
        }
    }
}
