// y[b] = a[b] x[b]: (m, k) (k, n) to (m, n), either operand stored as it is or transposed. A workgroup computes a tile of
// BM x BN through workgroup memory, BK steps of k at a time; an invocation TM x TN of it in registers. With `parts` above one,
// y is scratch: part p of each product, over steps p depth .. (p + 1) depth of k, stands batch products behind part p - 1. A second
// term of `more` steps goes with the first part, by the lines in `terms` once more.
// Overrides say which tile and which operands are transposed; slots are filled for a tile's registers and for each way of storing. As it
// stands: 64 x 64 x 16, 4 x 4, a by rows and x transposed, all extents divisible by four.
// Relies on: up to 256 invocations, 16896 bytes of workgroup memory, subgroups: no; f16: unpacked; bindings aligned to 16 bytes.
//#import shared/edges.wgsl
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
    parts: u32,
    depth: u32,
    more: u32,
    unused: u32,
}

override BM: u32 = 64;
override BN: u32 = 64;
override BK: u32 = 16;
override TM: u32 = 4;
override TN: u32 = 4;
override A_TRANSPOSED: bool = false;
override X_TRANSPOSED: bool = true;
// The second term's.
override X2_TRANSPOSED: bool = false;

// Invocations along the columns and in all, and vec4s from one step of k to the next in workgroup memory: one more than
// the tile is wide, so that the steps fall into different banks.
override TX: u32 = BN / TN;
override TY: u32 = BM / TM;
override THREADS: u32 = TX * TY;
override A_STEP: u32 = BM / 4u + 1u;
override X_STEP: u32 = BN / 4u + 1u;
override A_TILE: u32 = BK * A_STEP;
override X_TILE: u32 = BK * X_STEP;

var<workgroup> a_tile: array<vec4<f32>, A_TILE>;
var<workgroup> x_tile: array<vec4<f32>, X_TILE>;

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

fn store(i: u32, count: u32, value: vec4<f32>) {
    if (count > 0u) {
        keep(i / 4u, value);
    }
}
//#end

fn put(base: u32, row: u32, col: u32, value: vec4<f32>) {
    store(base + row * params.n + col, left(row, params.m, col, params.n), value);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let row0 = group.y * BM;
    //#slot counted
    //#end
    let col0 = group.x * BN;
    let tx = lane % TX;
    let ty = lane / TX;
    let m = params.m;
    let n = params.n;
    for (var z = group.z; z < params.batch * params.parts; z = z + groups.z) {
        let batch = z % params.batch;
        let part = z / params.batch;
        let begin = part * params.depth;
        let end = min(begin + params.depth, params.k);
        let a_base = batch * m * params.k;
        let x_base = batch * params.k * n;
        //#slot accumulators
        var c0_0 = vec4<f32>(0.0);
        var c1_0 = vec4<f32>(0.0);
        var c2_0 = vec4<f32>(0.0);
        var c3_0 = vec4<f32>(0.0);
        //#end
        //#twice terms
        for (var k0 = begin; k0 < end; k0 = k0 + BK) {
            // Neighbouring invocations read neighbouring vec4s. Workgroup memory holds, for each step of k, vec4s along m
            // or n: what is stored along k is turned in blocks of 4 x 4.
            if (A_TRANSPOSED) {
                for (var e = lane; e < BK * BM / 4u; e = e + THREADS) {
                    let d = e / (BM / 4u);
                    let q = e % (BM / 4u);
                    let row = row0 + q * 4u;
                    a_tile[d * A_STEP + q] = load_a(a_base + (k0 + d) * m + row, left(k0 + d, end, row, m));
                }
            } else {
                for (var e = lane; e < BM / 4u * (BK / 4u); e = e + THREADS) {
                    let d = e % (BK / 4u) * 4u;
                    let q = e / (BK / 4u);
                    let row = row0 + q * 4u;
                    let at = a_base + row * params.k + k0 + d;
                    let r0 = load_a(at, left(row, m, k0 + d, end));
                    let r1 = load_a(at + params.k, left(row + 1u, m, k0 + d, end));
                    let r2 = load_a(at + params.k * 2u, left(row + 2u, m, k0 + d, end));
                    let r3 = load_a(at + params.k * 3u, left(row + 3u, m, k0 + d, end));
                    a_tile[d * A_STEP + q] = vec4<f32>(r0.x, r1.x, r2.x, r3.x);
                    a_tile[(d + 1u) * A_STEP + q] = vec4<f32>(r0.y, r1.y, r2.y, r3.y);
                    a_tile[(d + 2u) * A_STEP + q] = vec4<f32>(r0.z, r1.z, r2.z, r3.z);
                    a_tile[(d + 3u) * A_STEP + q] = vec4<f32>(r0.w, r1.w, r2.w, r3.w);
                }
            }
            if (X_TRANSPOSED) {
                for (var e = lane; e < BN / 4u * (BK / 4u); e = e + THREADS) {
                    let d = e % (BK / 4u) * 4u;
                    let q = e / (BK / 4u);
                    let col = col0 + q * 4u;
                    let at = x_base + col * params.k + k0 + d;
                    let r0 = load_x(at, left(col, n, k0 + d, end));
                    let r1 = load_x(at + params.k, left(col + 1u, n, k0 + d, end));
                    let r2 = load_x(at + params.k * 2u, left(col + 2u, n, k0 + d, end));
                    let r3 = load_x(at + params.k * 3u, left(col + 3u, n, k0 + d, end));
                    x_tile[d * X_STEP + q] = vec4<f32>(r0.x, r1.x, r2.x, r3.x);
                    x_tile[(d + 1u) * X_STEP + q] = vec4<f32>(r0.y, r1.y, r2.y, r3.y);
                    x_tile[(d + 2u) * X_STEP + q] = vec4<f32>(r0.z, r1.z, r2.z, r3.z);
                    x_tile[(d + 3u) * X_STEP + q] = vec4<f32>(r0.w, r1.w, r2.w, r3.w);
                }
            } else {
                for (var e = lane; e < BK * BN / 4u; e = e + THREADS) {
                    let d = e / (BN / 4u);
                    let q = e % (BN / 4u);
                    let col = col0 + q * 4u;
                    x_tile[d * X_STEP + q] = load_x(x_base + (k0 + d) * n + col, left(k0 + d, end, col, n));
                }
            }
            workgroupBarrier();
            for (var d = 0u; d < BK; d = d + 1u) {
                //#slot multiply
                let x0 = x_tile[d * X_STEP + tx];
                let a0 = a_tile[d * A_STEP + ty];
                c0_0 = fma(vec4<f32>(a0.x), x0, c0_0);
                c1_0 = fma(vec4<f32>(a0.y), x0, c1_0);
                c2_0 = fma(vec4<f32>(a0.z), x0, c2_0);
                c3_0 = fma(vec4<f32>(a0.w), x0, c3_0);
                //#end
            }
            workgroupBarrier();
        }
        //#end twice
        let y_base = z * m * n;
        //#slot stores
        put(y_base, row0 + ty * 4u, col0 + tx * 4u, c0_0);
        put(y_base, row0 + ty * 4u + 1u, col0 + tx * 4u, c1_0);
        put(y_base, row0 + ty * 4u + 2u, col0 + tx * 4u, c2_0);
        put(y_base, row0 + ty * 4u + 3u, col0 + tx * 4u, c3_0);
        //#end
    }
}
