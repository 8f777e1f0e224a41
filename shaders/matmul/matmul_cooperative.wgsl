// y[b] = a[b] x[b] as matmul.wgsl has it, operands rounded to f16 while they are staged, in cooperative matrices that
// add up in f32. GM x GN subgroups share a workgroup; each computes SM x SN matrices of T x T. Workgroup memory holds operands
// as they are stored, so that which way round is the loads' matter.
// The marked parts are replaced for each tile and each way of storing.
// Relies on: the adapter's own matrices and subgroups, at most its limits of invocations and workgroup memory; f16: matrices; bindings
// aligned to 16 bytes. It is checked against matmul.wgsl on the adapter before it is used.

enable f16;
enable wgpu_cooperative_matrix;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    batch: u32,
    parts: u32,
    depth: u32,
    more: u32,
    unused: u32,
}

//#tile
const T: u32 = 16u;
const SM: u32 = 1u;
const SN: u32 = 1u;
const GM: u32 = 1u;
const GN: u32 = 1u;
const BK: u32 = 16u;
const WIDTH: u32 = 32u;
const A_TRANSPOSED: bool = false;
const X_TRANSPOSED: bool = true;
const X2_TRANSPOSED: bool = true;
// Whether rows of y are aligned as stores of whole matrices need them.
const ALIGNED: bool = true;
var<workgroup> a_tile: array<f16, 384>;
var<workgroup> x_tile: array<f16, 384>;
var<workgroup> y_tile: array<f32, 256>;
//#end

const BM: u32 = T * SM * GM;
const BN: u32 = T * SN * GN;
const THREADS: u32 = WIDTH * GM * GN;
const A_ROWS: u32 = select(BM, BK, A_TRANSPOSED);
const A_COLS: u32 = select(BK, BM, A_TRANSPOSED);
const X_ROWS: u32 = select(BK, BN, X_TRANSPOSED);
const X_COLS: u32 = select(BN, BK, X_TRANSPOSED);
const X2_ROWS: u32 = select(BK, BN, X2_TRANSPOSED);
const X2_COLS: u32 = select(BN, BK, X2_TRANSPOSED);
// Elements from row to row: 16 bytes more than a row has, which keeps rows aligned and in different banks.
const A_STEP: u32 = A_COLS + 8u;
const X_STEP: u32 = X_COLS + 8u;
const X2_STEP: u32 = X2_COLS + 8u;

@group(0) @binding(0) var<uniform> params: Params;
//#bindings
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// The end of a sum: the element that stands at i.
fn keep(i: u32, sum: f32) {
    y[i] = sum;
}
//#end

// Four neighbouring elements from element `i` on, of which the first `count` are there; the rest are zero.
//#access
fn load_a(i: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4<f32>(0.0);
    }
    return a[i / 4u];
}

fn load_x(i: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4<f32>(0.0);
    }
    return x[i / 4u];
}
//#end

// How many of the elements from `at` on are before `end`; none if `row` is beyond `rows`.
fn left(row: u32, rows: u32, at: u32, end: u32) -> u32 {
    return select(0u, end - min(at, end), row < rows);
}

// The part of the tile that lies within y, from the matrix that the subgroup has put into y_tile.
fn put(base: u32, row: u32, col: u32, subgroup: u32, lane: u32) {
    for (var e = lane; e < T * T; e = e + WIDTH) {
        let r = row + e / T;
        let c = col + e % T;
        if (r < params.m && c < params.n) {
            keep(base + r * params.n + c, y_tile[subgroup * T * T + e]);
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let m = params.m;
    let n = params.n;
    let row0 = group.y * BM;
    let col0 = group.x * BN;
    let subgroup = lane / WIDTH;
    let down = subgroup / GN * SM * T;
    let along = subgroup % GN * SN * T;
    let batch = group.z % params.batch;
    let part = group.z / params.batch;
    let begin = part * params.depth;
    let end = min(begin + params.depth, params.k);
    let a_base = batch * m * params.k;
    let x_base = batch * params.k * n;
    //#accumulators
    var c0_0: coop_mat16x16<f32, C>;
    //#end
    //@terms
    for (var k0 = begin; k0 < end; k0 = k0 + BK) {
        let a_row = select(row0, k0, A_TRANSPOSED);
        let a_col = select(k0, row0, A_TRANSPOSED);
        let a_rows = select(m, end, A_TRANSPOSED);
        let a_cols = select(end, m, A_TRANSPOSED);
        let a_pitch = select(params.k, m, A_TRANSPOSED);
        for (var e = lane; e < A_ROWS * (A_COLS / 4u); e = e + THREADS) {
            let r = e / (A_COLS / 4u);
            let c = e % (A_COLS / 4u) * 4u;
            let i = a_base + (a_row + r) * a_pitch + a_col + c;
            let v = load_a(i, left(a_row + r, a_rows, a_col + c, a_cols));
            let at = r * A_STEP + c;
            a_tile[at] = f16(v.x);
            a_tile[at + 1u] = f16(v.y);
            a_tile[at + 2u] = f16(v.z);
            a_tile[at + 3u] = f16(v.w);
        }
        let x_row = select(k0, col0, X_TRANSPOSED);
        let x_col = select(col0, k0, X_TRANSPOSED);
        let x_rows = select(end, n, X_TRANSPOSED);
        let x_cols = select(n, end, X_TRANSPOSED);
        let x_pitch = select(n, params.k, X_TRANSPOSED);
        for (var e = lane; e < X_ROWS * (X_COLS / 4u); e = e + THREADS) {
            let r = e / (X_COLS / 4u);
            let c = e % (X_COLS / 4u) * 4u;
            let i = x_base + (x_row + r) * x_pitch + x_col + c;
            let v = load_x(i, left(x_row + r, x_rows, x_col + c, x_cols));
            let at = r * X_STEP + c;
            x_tile[at] = f16(v.x);
            x_tile[at + 1u] = f16(v.y);
            x_tile[at + 2u] = f16(v.z);
            x_tile[at + 3u] = f16(v.w);
        }
        workgroupBarrier();
        for (var d = 0u; d < BK; d = d + T) {
            //#multiply
            let p0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[down * A_STEP + d], A_STEP);
            let q0 = coopLoad<coop_mat16x16<f16, B>>(&x_tile[along * X_STEP + d], X_STEP);
            c0_0 = coopMultiplyAdd(p0, q0, c0_0);
            //#end
        }
        workgroupBarrier();
    }
    //@end
    let y_base = group.z * m * n;
    let corner = subgroup * T * T;
    if (ALIGNED && row0 + BM <= m && col0 + BN <= n) {
        //#whole
        let i0_0 = y_base + (row0 + down) * n + col0 + along;
        coopStoreT(c0_0, &y[i0_0], n);
        //#end
    } else {
        //#edge
        coopStoreT(c0_0, &y_tile[corner], T);
        workgroupBarrier();
        put(y_base, row0 + down, col0 + along, subgroup, lane % WIDTH);
        workgroupBarrier();
        //#end
    }
}
