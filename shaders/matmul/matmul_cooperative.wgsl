// y[b] = a[b] x[b] as matmul.wgsl has it, operands rounded to f16 while they are staged, in cooperative matrices that
// add up in f32. GM x GN subgroups share a workgroup; each computes SM x SN matrices of T x T. Workgroup memory holds operands
// as they are stored, so that which way round is the loads' matter.
// Slots are filled for each tile and each way of storing.
// Relies on: the adapter's own matrices and subgroups, at most its limits of invocations and workgroup memory; f16: matrices; bindings
// aligned to 16 bytes. It is checked against matmul.wgsl on the adapter before it is used.
//#import shared/edges.wgsl
//#import shared/halves.wgsl
//#import shared/math.wgsl

enable f16;
enable wgpu_cooperative_matrix;

//#slot counts
//#end

struct Params {
    //#slot chunk
    //#end
    m: u32,
    n: u32,
    k: u32,
    batch: u32,
    parts: u32,
    depth: u32,
    more: u32,
    unused: u32,
}

override T: u32 = 16;
override SM: u32 = 1;
override SN: u32 = 1;
override GM: u32 = 1;
override GN: u32 = 1;
override BK: u32 = 16;
override WIDTH: u32 = 32;
override A_TRANSPOSED: bool = false;
override X_TRANSPOSED: bool = true;
// The second term's.
override X2_TRANSPOSED: bool = true;
// Whether rows of y are aligned as stores of whole matrices need them.
override ALIGNED: bool = true;

override BM: u32 = T * SM * GM;
override BN: u32 = T * SN * GN;
override THREADS: u32 = WIDTH * GM * GN;
override A_ROWS: u32 = select(BM, BK, A_TRANSPOSED);
override A_COLS: u32 = select(BK, BM, A_TRANSPOSED);
override X_ROWS: u32 = select(BK, BN, X_TRANSPOSED);
override X_COLS: u32 = select(BN, BK, X_TRANSPOSED);
override X2_ROWS: u32 = select(BK, BN, X2_TRANSPOSED);
override X2_COLS: u32 = select(BN, BK, X2_TRANSPOSED);
// Elements from row to row: 16 bytes more than a row has, which keeps rows aligned and in different banks.
override A_STEP: u32 = A_COLS + 8u;
override X_STEP: u32 = X_COLS + 8u;
override X2_STEP: u32 = X2_COLS + 8u;
override A_TILE: u32 = A_ROWS * A_STEP;
override X_TILE: u32 = max(X_ROWS * X_STEP, X2_ROWS * X2_STEP);
override Y_TILE: u32 = GM * GN * T * T;

var<workgroup> a_tile: array<f16, A_TILE>;
var<workgroup> x_tile: array<f16, X_TILE>;
var<workgroup> y_tile: array<f32, Y_TILE>;

@group(0) @binding(0) var<uniform> params: Params;
//#slot bindings
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// The end of a sum: the element that stands at i.
fn keep(i: u32, sum: f32) {
    y[i] = sum;
}
//#end

// Four neighbouring elements from element `i` on, of which the first `count` are there; the rest are zero.
//#slot access
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
    //#slot counted
    //#end
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
    //#slot accumulators
    var c0_0: coop_mat16x16<f32, C>;
    //#end
    //#twice terms
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
            //#slot multiply
            let p0 = coopLoadT<coop_mat16x16<f16, A>>(&a_tile[down * A_STEP + d], A_STEP);
            let q0 = coopLoad<coop_mat16x16<f16, B>>(&x_tile[along * X_STEP + d], X_STEP);
            c0_0 = coopMultiplyAdd(p0, q0, c0_0);
            //#end
        }
        workgroupBarrier();
    }
    //#end twice
    let y_base = group.z * m * n;
    let corner = subgroup * T * T;
    if (ALIGNED && row0 + BM <= m && col0 + BN <= n) {
        //#slot whole
        let i0_0 = y_base + (row0 + down) * n + col0 + along;
        coopStoreT(c0_0, &y[i0_0], n);
        //#end
    } else {
        //#slot edge
        coopStoreT(c0_0, &y_tile[corner], T);
        workgroupBarrier();
        put(y_base, row0 + down, col0 + along, subgroup, lane % WIDTH);
        workgroupBarrier();
        //#end
    }
}
