// attention_grad_kv.wgsl for software adapters, of heads whose extents are divisible by four: eight invocations take 8 keys of one head
// of keys and go through the queries of every head that shares it, 64 at a time. Each computes the scores of every eighth
// query, then columns of the gradients, which it keeps in dk and dv from block to block. Slots are filled where subgroups share what
// all eight read.
// Relies on: up to 8 invocations, 4096 bytes of workgroup memory, subgroups: 8, 16, 32, 64, 128; f16: no; bindings aligned to 16 bytes.
//#import shared/attention_scores.wgsl
//#import shared/eight_rows.wgsl
//#import shared/math.wgsl

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> rows: array<f32>;
@group(0) @binding(7) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> dv: array<vec4<f32>>;

// Eight for each query: those of the keys.
var<workgroup> weights: array<f32, 512>;
var<workgroup> slopes: array<f32, 512>;

// Adds to an element of dk, or begins it.
fn put_dk(inside: bool, at: u32, more: bool, r: vec4<f32>) {
    if (inside) {
        if (more) {
            dk[at] = r + dk[at];
        } else {
            dk[at] = r;
        }
    }
}

// Adds to an element of dv, or begins it.
fn put_dv(inside: bool, at: u32, more: bool, r: vec4<f32>) {
    if (inside) {
        if (more) {
            dv[at] = r + dv[at];
        } else {
            dv[at] = r;
        }
    }
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    //#slot builtins
    //#end
) {
    let index = group.x + group.y * params.grid;
    let shared_heads = params.heads / params.share;
    if (index >= params.batch * shared_heads * params.tiles) {
        return;
    }
    let first = index % params.tiles * 8u;
    let kv = index / params.tiles % shared_heads;
    let b = index / params.tiles / shared_heads;
    let k_base = b * params.k_batch + kv * params.k_head;
    let v_base = b * params.v_batch + kv * params.v_head;
    let width = params.width / 4u;
    let value = params.value / 4u;
    let last = params.keys - 1u;
    let key0 = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    let key1 = min(vec4<u32>(first) + vec4<u32>(4u, 5u, 6u, 7u), vec4<u32>(last));
    let k0 = (k_base + key0.x * params.k_row) / 4u;
    let k1 = (k_base + key0.y * params.k_row) / 4u;
    let k2 = (k_base + key0.z * params.k_row) / 4u;
    let k3 = (k_base + key0.w * params.k_row) / 4u;
    let k4 = (k_base + key1.x * params.k_row) / 4u;
    let k5 = (k_base + key1.y * params.k_row) / 4u;
    let k6 = (k_base + key1.z * params.k_row) / 4u;
    let k7 = (k_base + key1.w * params.k_row) / 4u;
    let v0 = (v_base + key0.x * params.v_row) / 4u;
    let v1 = (v_base + key0.y * params.v_row) / 4u;
    let v2 = (v_base + key0.z * params.v_row) / 4u;
    let v3 = (v_base + key0.w * params.v_row) / 4u;
    let v4 = (v_base + key1.x * params.v_row) / 4u;
    let v5 = (v_base + key1.y * params.v_row) / 4u;
    let v6 = (v_base + key1.z * params.v_row) / 4u;
    let v7 = (v_base + key1.w * params.v_row) / 4u;
    //#slot own
    //#end
    for (var head = kv * params.share; head < (kv + 1u) * params.share; head = head + 1u) {
        let q_base = b * params.q_batch + head * params.q_head;
        let y_base = b * params.y_batch + head * params.y_head;
        for (var query = 0u; query < params.queries; query = query + 64u) {
            let begin = query == 0u && head == kv * params.share;
            let count = min(params.queries - query, 64u);
            for (var left = 0u; left < count; left = left + 8u) {
                let c = left + lane;
                let own = query + min(c, count - 1u);
                let q_at = (q_base + own * params.q_row) / 4u;
                let g_at = (y_base + own * params.y_row) / 4u;
                var s0 = vec4<f32>(0.0);
                var s1 = vec4<f32>(0.0);
                for (var d = 0u; d < width; d = d + 1u) {
                    let x = q[q_at + d];
                    //#slot keys
                    let a0 = k[k0 + d];
                    let a1 = k[k1 + d];
                    let a2 = k[k2 + d];
                    let a3 = k[k3 + d];
                    let a4 = k[k4 + d];
                    let a5 = k[k5 + d];
                    let a6 = k[k6 + d];
                    let a7 = k[k7 + d];
                    //#end
                    add_products(&s0, &s1, a0, a1, a2, a3, a4, a5, a6, a7, x);
                }
                var t0 = vec4<f32>(0.0);
                var t1 = vec4<f32>(0.0);
                for (var d = 0u; d < value; d = d + 1u) {
                    let x = g[g_at + d];
                    //#slot values
                    let a0 = v[v0 + d];
                    let a1 = v[v1 + d];
                    let a2 = v[v2 + d];
                    let a3 = v[v3 + d];
                    let a4 = v[v4 + d];
                    let a5 = v[v5 + d];
                    let a6 = v[v6 + d];
                    let a7 = v[v7 + d];
                    //#end
                    add_products(&t0, &t1, a0, a1, a2, a3, a4, a5, a6, a7, x);
                }
                var e0 = ruled(s0);
                var e1 = ruled(s1);
                if ((params.flags & 1u) != 0u) {
                    let at = b * params.bias_batch + head * params.bias_head + own * params.bias_query;
                    e0.e = e0.e + vec4<f32>(bias[at + key0.x * params.bias_key], bias[at + key0.y * params.bias_key], bias[at + key0.z * params.bias_key], bias[at + key0.w * params.bias_key]);
                    e1.e = e1.e + vec4<f32>(bias[at + key1.x * params.bias_key], bias[at + key1.y * params.bias_key], bias[at + key1.z * params.bias_key], bias[at + key1.w * params.bias_key]);
                }
                let row = ((b * params.heads + head) * params.queries + own) * 3u;
                s0 = exp_vec4_(e0.e - rows[row]) * rows[row + 1u];
                s1 = exp_vec4_(e1.e - rows[row]) * rows[row + 1u];
                t0 = s0 * (t0 - rows[row + 2u]) * e0.slope;
                t1 = s1 * (t1 - rows[row + 2u]) * e1.slope;
                if (c < count) {
                    weights[c * 8u + 0u] = s0.x;
                    weights[c * 8u + 1u] = s0.y;
                    weights[c * 8u + 2u] = s0.z;
                    weights[c * 8u + 3u] = s0.w;
                    weights[c * 8u + 4u] = s1.x;
                    weights[c * 8u + 5u] = s1.y;
                    weights[c * 8u + 6u] = s1.z;
                    weights[c * 8u + 7u] = s1.w;
                    slopes[c * 8u + 0u] = t0.x;
                    slopes[c * 8u + 1u] = t0.y;
                    slopes[c * 8u + 2u] = t0.z;
                    slopes[c * 8u + 3u] = t0.w;
                    slopes[c * 8u + 4u] = t1.x;
                    slopes[c * 8u + 5u] = t1.y;
                    slopes[c * 8u + 6u] = t1.z;
                    slopes[c * 8u + 7u] = t1.w;
                }
            }
            workgroupBarrier();
            for (var left = 0u; left < value; left = left + 8u) {
                let col = min(left + lane, value - 1u);
                var r0 = vec4<f32>(0.0);
                var r1 = vec4<f32>(0.0);
                var r2 = vec4<f32>(0.0);
                var r3 = vec4<f32>(0.0);
                var r4 = vec4<f32>(0.0);
                var r5 = vec4<f32>(0.0);
                var r6 = vec4<f32>(0.0);
                var r7 = vec4<f32>(0.0);
                for (var j = 0u; j < count; j = j + 1u) {
                    let x = g[(y_base + (query + j) * params.y_row) / 4u + col];
                    //#slot weights
                    let w0 = weights[j * 8u + 0u];
                    let w1 = weights[j * 8u + 1u];
                    let w2 = weights[j * 8u + 2u];
                    let w3 = weights[j * 8u + 3u];
                    let w4 = weights[j * 8u + 4u];
                    let w5 = weights[j * 8u + 5u];
                    let w6 = weights[j * 8u + 6u];
                    let w7 = weights[j * 8u + 7u];
                    //#end
                    r0 = fma(vec4<f32>(w0), x, r0);
                    r1 = fma(vec4<f32>(w1), x, r1);
                    r2 = fma(vec4<f32>(w2), x, r2);
                    r3 = fma(vec4<f32>(w3), x, r3);
                    r4 = fma(vec4<f32>(w4), x, r4);
                    r5 = fma(vec4<f32>(w5), x, r5);
                    r6 = fma(vec4<f32>(w6), x, r6);
                    r7 = fma(vec4<f32>(w7), x, r7);
                }
                put_dv(left + lane < value && first + 0u < params.keys, (v_base + (first + 0u) * params.v_row) / 4u + col, !begin, r0);
                put_dv(left + lane < value && first + 1u < params.keys, (v_base + (first + 1u) * params.v_row) / 4u + col, !begin, r1);
                put_dv(left + lane < value && first + 2u < params.keys, (v_base + (first + 2u) * params.v_row) / 4u + col, !begin, r2);
                put_dv(left + lane < value && first + 3u < params.keys, (v_base + (first + 3u) * params.v_row) / 4u + col, !begin, r3);
                put_dv(left + lane < value && first + 4u < params.keys, (v_base + (first + 4u) * params.v_row) / 4u + col, !begin, r4);
                put_dv(left + lane < value && first + 5u < params.keys, (v_base + (first + 5u) * params.v_row) / 4u + col, !begin, r5);
                put_dv(left + lane < value && first + 6u < params.keys, (v_base + (first + 6u) * params.v_row) / 4u + col, !begin, r6);
                put_dv(left + lane < value && first + 7u < params.keys, (v_base + (first + 7u) * params.v_row) / 4u + col, !begin, r7);
            }
            for (var left = 0u; left < width; left = left + 8u) {
                let col = min(left + lane, width - 1u);
                var r0 = vec4<f32>(0.0);
                var r1 = vec4<f32>(0.0);
                var r2 = vec4<f32>(0.0);
                var r3 = vec4<f32>(0.0);
                var r4 = vec4<f32>(0.0);
                var r5 = vec4<f32>(0.0);
                var r6 = vec4<f32>(0.0);
                var r7 = vec4<f32>(0.0);
                for (var j = 0u; j < count; j = j + 1u) {
                    let x = q[(q_base + (query + j) * params.q_row) / 4u + col];
                    //#slot slopes
                    let w0 = slopes[j * 8u + 0u];
                    let w1 = slopes[j * 8u + 1u];
                    let w2 = slopes[j * 8u + 2u];
                    let w3 = slopes[j * 8u + 3u];
                    let w4 = slopes[j * 8u + 4u];
                    let w5 = slopes[j * 8u + 5u];
                    let w6 = slopes[j * 8u + 6u];
                    let w7 = slopes[j * 8u + 7u];
                    //#end
                    r0 = fma(vec4<f32>(w0), x, r0);
                    r1 = fma(vec4<f32>(w1), x, r1);
                    r2 = fma(vec4<f32>(w2), x, r2);
                    r3 = fma(vec4<f32>(w3), x, r3);
                    r4 = fma(vec4<f32>(w4), x, r4);
                    r5 = fma(vec4<f32>(w5), x, r5);
                    r6 = fma(vec4<f32>(w6), x, r6);
                    r7 = fma(vec4<f32>(w7), x, r7);
                }
                put_dk(left + lane < width && first + 0u < params.keys, (k_base + (first + 0u) * params.k_row) / 4u + col, !begin, r0);
                put_dk(left + lane < width && first + 1u < params.keys, (k_base + (first + 1u) * params.k_row) / 4u + col, !begin, r1);
                put_dk(left + lane < width && first + 2u < params.keys, (k_base + (first + 2u) * params.k_row) / 4u + col, !begin, r2);
                put_dk(left + lane < width && first + 3u < params.keys, (k_base + (first + 3u) * params.k_row) / 4u + col, !begin, r3);
                put_dk(left + lane < width && first + 4u < params.keys, (k_base + (first + 4u) * params.k_row) / 4u + col, !begin, r4);
                put_dk(left + lane < width && first + 5u < params.keys, (k_base + (first + 5u) * params.k_row) / 4u + col, !begin, r5);
                put_dk(left + lane < width && first + 6u < params.keys, (k_base + (first + 6u) * params.k_row) / 4u + col, !begin, r6);
                put_dk(left + lane < width && first + 7u < params.keys, (k_base + (first + 7u) * params.k_row) / 4u + col, !begin, r7);
            }
            workgroupBarrier();
        }
    }
}
