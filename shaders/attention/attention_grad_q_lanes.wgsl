// attention_grad_q.wgsl for software adapters, of heads whose extents are divisible by four: eight invocations take 8 queries and go
// through the keys 64 at a time. Each computes the scores of every eighth key, then columns of the gradient. Slots are filled where
// subgroups share what all eight read.
// Relies on: up to 8 invocations, 2048 bytes of workgroup memory, subgroups: 8, 16, 32, 64, 128; f16: no; bindings aligned to 16 bytes.
//#import shared/attention_scores.wgsl
//#import shared/eight_rows.wgsl
//#import shared/math.wgsl

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> rows: array<f32>;
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<f32>>;

// Eight for each key: those of the queries.
var<workgroup> slopes: array<f32, 512>;

// Adds to an element of dq, or begins it.
fn put_dq(inside: bool, at: u32, more: bool, r: vec4<f32>) {
    if (inside) {
        if (more) {
            dq[at] = r + dq[at];
        } else {
            dq[at] = r;
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
    if (index >= params.batch * params.heads * params.tiles) {
        return;
    }
    let first = index % params.tiles * 8u;
    let head = index / params.tiles % params.heads;
    let b = index / params.tiles / params.heads;
    let q_base = b * params.q_batch + head * params.q_head;
    let k_base = b * params.k_batch + head / params.share * params.k_head;
    let v_base = b * params.v_batch + head / params.share * params.v_head;
    let y_base = b * params.y_batch + head * params.y_head;
    let width = params.width / 4u;
    let value = params.value / 4u;
    let last = params.queries - 1u;
    let query0 = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    let query1 = min(vec4<u32>(first) + vec4<u32>(4u, 5u, 6u, 7u), vec4<u32>(last));
    let q0 = (q_base + query0.x * params.q_row) / 4u;
    let q1 = (q_base + query0.y * params.q_row) / 4u;
    let q2 = (q_base + query0.z * params.q_row) / 4u;
    let q3 = (q_base + query0.w * params.q_row) / 4u;
    let q4 = (q_base + query1.x * params.q_row) / 4u;
    let q5 = (q_base + query1.y * params.q_row) / 4u;
    let q6 = (q_base + query1.z * params.q_row) / 4u;
    let q7 = (q_base + query1.w * params.q_row) / 4u;
    let g0 = (y_base + query0.x * params.y_row) / 4u;
    let g1 = (y_base + query0.y * params.y_row) / 4u;
    let g2 = (y_base + query0.z * params.y_row) / 4u;
    let g3 = (y_base + query0.w * params.y_row) / 4u;
    let g4 = (y_base + query1.x * params.y_row) / 4u;
    let g5 = (y_base + query1.y * params.y_row) / 4u;
    let g6 = (y_base + query1.z * params.y_row) / 4u;
    let g7 = (y_base + query1.w * params.y_row) / 4u;
    //#slot own
    //#end
    let at_rows = (b * params.heads + head) * params.queries;
    let top0 = vec4<f32>(rows[(at_rows + query0.x) * 3u + 0u], rows[(at_rows + query0.y) * 3u + 0u], rows[(at_rows + query0.z) * 3u + 0u], rows[(at_rows + query0.w) * 3u + 0u]);
    let top1 = vec4<f32>(rows[(at_rows + query1.x) * 3u + 0u], rows[(at_rows + query1.y) * 3u + 0u], rows[(at_rows + query1.z) * 3u + 0u], rows[(at_rows + query1.w) * 3u + 0u]);
    let over0 = vec4<f32>(rows[(at_rows + query0.x) * 3u + 1u], rows[(at_rows + query0.y) * 3u + 1u], rows[(at_rows + query0.z) * 3u + 1u], rows[(at_rows + query0.w) * 3u + 1u]);
    let over1 = vec4<f32>(rows[(at_rows + query1.x) * 3u + 1u], rows[(at_rows + query1.y) * 3u + 1u], rows[(at_rows + query1.z) * 3u + 1u], rows[(at_rows + query1.w) * 3u + 1u]);
    let delta0 = vec4<f32>(rows[(at_rows + query0.x) * 3u + 2u], rows[(at_rows + query0.y) * 3u + 2u], rows[(at_rows + query0.z) * 3u + 2u], rows[(at_rows + query0.w) * 3u + 2u]);
    let delta1 = vec4<f32>(rows[(at_rows + query1.x) * 3u + 2u], rows[(at_rows + query1.y) * 3u + 2u], rows[(at_rows + query1.z) * 3u + 2u], rows[(at_rows + query1.w) * 3u + 2u]);
    for (var key = 0u; key < params.keys; key = key + 64u) {
        let count = min(params.keys - key, 64u);
        for (var left = 0u; left < count; left = left + 8u) {
            let c = left + lane;
            let own = key + min(c, count - 1u);
            let k_at = (k_base + own * params.k_row) / 4u;
            let v_at = (v_base + own * params.v_row) / 4u;
            var s0 = vec4<f32>(0.0);
            var s1 = vec4<f32>(0.0);
            for (var d = 0u; d < width; d = d + 1u) {
                let x = k[k_at + d];
                //#slot queries
                let a0 = q[q0 + d];
                let a1 = q[q1 + d];
                let a2 = q[q2 + d];
                let a3 = q[q3 + d];
                let a4 = q[q4 + d];
                let a5 = q[q5 + d];
                let a6 = q[q6 + d];
                let a7 = q[q7 + d];
                //#end
                add_products(&s0, &s1, a0, a1, a2, a3, a4, a5, a6, a7, x);
            }
            var t0 = vec4<f32>(0.0);
            var t1 = vec4<f32>(0.0);
            for (var d = 0u; d < value; d = d + 1u) {
                let x = v[v_at + d];
                //#slot gradients
                let a0 = g[g0 + d];
                let a1 = g[g1 + d];
                let a2 = g[g2 + d];
                let a3 = g[g3 + d];
                let a4 = g[g4 + d];
                let a5 = g[g5 + d];
                let a6 = g[g6 + d];
                let a7 = g[g7 + d];
                //#end
                add_products(&t0, &t1, a0, a1, a2, a3, a4, a5, a6, a7, x);
            }
            var e0 = ruled(s0);
            var e1 = ruled(s1);
            if ((params.flags & 1u) != 0u) {
                e0.e = e0.e + biases(b, head, own, query0);
                e1.e = e1.e + biases(b, head, own, query1);
            }
            t0 = exp_vec4_(e0.e - top0) * over0 * (t0 - delta0) * e0.slope;
            t1 = exp_vec4_(e1.e - top1) * over1 * (t1 - delta1) * e1.slope;
            if (c < count) {
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
                let x = k[(k_base + (key + j) * params.k_row) / 4u + col];
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
            put_dq(left + lane < width && first + 0u < params.queries, (q_base + (first + 0u) * params.q_row) / 4u + col, key != 0u, r0);
            put_dq(left + lane < width && first + 1u < params.queries, (q_base + (first + 1u) * params.q_row) / 4u + col, key != 0u, r1);
            put_dq(left + lane < width && first + 2u < params.queries, (q_base + (first + 2u) * params.q_row) / 4u + col, key != 0u, r2);
            put_dq(left + lane < width && first + 3u < params.queries, (q_base + (first + 3u) * params.q_row) / 4u + col, key != 0u, r3);
            put_dq(left + lane < width && first + 4u < params.queries, (q_base + (first + 4u) * params.q_row) / 4u + col, key != 0u, r4);
            put_dq(left + lane < width && first + 5u < params.queries, (q_base + (first + 5u) * params.q_row) / 4u + col, key != 0u, r5);
            put_dq(left + lane < width && first + 6u < params.queries, (q_base + (first + 6u) * params.q_row) / 4u + col, key != 0u, r6);
            put_dq(left + lane < width && first + 7u < params.queries, (q_base + (first + 7u) * params.q_row) / 4u + col, key != 0u, r7);
        }
        workgroupBarrier();
    }
}
