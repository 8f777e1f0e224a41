// attention_grad_q.wgsl for software adapters, of heads whose extents are divisible by four: eight invocations take 8 queries and go
// through the keys 64 at a time. Each computes the scores of every eighth key, then columns of the gradient.
// Relies on: up to 8 invocations, 2048 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 16 bytes.
//#import shared/attention_scores.wgsl
//#import shared/math.wgsl

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> rows: array<f32>;
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<f32>>;

var<workgroup> slopes: array<f32, 512>;

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
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
    let at_rows = (b * params.heads + head) * params.queries;
    let top0 = vec4<f32>(rows[(at_rows + query0.x) * 3u + 0u], rows[(at_rows + query0.y) * 3u + 0u], rows[(at_rows + query0.z) * 3u + 0u], rows[(at_rows + query0.w) * 3u + 0u]);
    let top1 = vec4<f32>(rows[(at_rows + query1.x) * 3u + 0u], rows[(at_rows + query1.y) * 3u + 0u], rows[(at_rows + query1.z) * 3u + 0u], rows[(at_rows + query1.w) * 3u + 0u]);
    let over0 = vec4<f32>(rows[(at_rows + query0.x) * 3u + 1u], rows[(at_rows + query0.y) * 3u + 1u], rows[(at_rows + query0.z) * 3u + 1u], rows[(at_rows + query0.w) * 3u + 1u]);
    let over1 = vec4<f32>(rows[(at_rows + query1.x) * 3u + 1u], rows[(at_rows + query1.y) * 3u + 1u], rows[(at_rows + query1.z) * 3u + 1u], rows[(at_rows + query1.w) * 3u + 1u]);
    let delta0 = vec4<f32>(rows[(at_rows + query0.x) * 3u + 2u], rows[(at_rows + query0.y) * 3u + 2u], rows[(at_rows + query0.z) * 3u + 2u], rows[(at_rows + query0.w) * 3u + 2u]);
    let delta1 = vec4<f32>(rows[(at_rows + query1.x) * 3u + 2u], rows[(at_rows + query1.y) * 3u + 2u], rows[(at_rows + query1.z) * 3u + 2u], rows[(at_rows + query1.w) * 3u + 2u]);
    for (var key = 0u; key < params.keys; key = key + 64u) {
        let count = min(params.keys - key, 64u);
        for (var c = lane; c < count; c = c + 8u) {
            let k_at = (k_base + (key + c) * params.k_row) / 4u;
            let v_at = (v_base + (key + c) * params.v_row) / 4u;
            var s0 = vec4<f32>(0.0);
            var s1 = vec4<f32>(0.0);
            for (var d = 0u; d < width; d = d + 1u) {
                let x = k[k_at + d];
                s0 = s0 + vec4<f32>(dot(q[q0 + d], x), dot(q[q1 + d], x), dot(q[q2 + d], x), dot(q[q3 + d], x));
                s1 = s1 + vec4<f32>(dot(q[q4 + d], x), dot(q[q5 + d], x), dot(q[q6 + d], x), dot(q[q7 + d], x));
            }
            var t0 = vec4<f32>(0.0);
            var t1 = vec4<f32>(0.0);
            for (var d = 0u; d < value; d = d + 1u) {
                let x = v[v_at + d];
                t0 = t0 + vec4<f32>(dot(g[g0 + d], x), dot(g[g1 + d], x), dot(g[g2 + d], x), dot(g[g3 + d], x));
                t1 = t1 + vec4<f32>(dot(g[g4 + d], x), dot(g[g5 + d], x), dot(g[g6 + d], x), dot(g[g7 + d], x));
            }
            var e0 = ruled(s0);
            var e1 = ruled(s1);
            if ((params.flags & 1u) != 0u) {
                e0.e = e0.e + biases(b, head, key + c, query0);
                e1.e = e1.e + biases(b, head, key + c, query1);
            }
            t0 = exp_vec4_(e0.e - top0) * over0 * (t0 - delta0) * e0.slope;
            t1 = exp_vec4_(e1.e - top1) * over1 * (t1 - delta1) * e1.slope;
            slopes[0u + c] = t0.x;
            slopes[64u + c] = t0.y;
            slopes[128u + c] = t0.z;
            slopes[192u + c] = t0.w;
            slopes[256u + c] = t1.x;
            slopes[320u + c] = t1.y;
            slopes[384u + c] = t1.z;
            slopes[448u + c] = t1.w;
        }
        workgroupBarrier();
        for (var col = lane; col < width; col = col + 8u) {
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
                r0 = r0 + slopes[0u + j] * x;
                r1 = r1 + slopes[64u + j] * x;
                r2 = r2 + slopes[128u + j] * x;
                r3 = r3 + slopes[192u + j] * x;
                r4 = r4 + slopes[256u + j] * x;
                r5 = r5 + slopes[320u + j] * x;
                r6 = r6 + slopes[384u + j] * x;
                r7 = r7 + slopes[448u + j] * x;
            }
            if (first + 0u < params.queries) {
                let at = (q_base + (first + 0u) * params.q_row) / 4u + col;
                if (key != 0u) {
                    r0 = r0 + dq[at];
                }
                dq[at] = r0;
            }
            if (first + 1u < params.queries) {
                let at = (q_base + (first + 1u) * params.q_row) / 4u + col;
                if (key != 0u) {
                    r1 = r1 + dq[at];
                }
                dq[at] = r1;
            }
            if (first + 2u < params.queries) {
                let at = (q_base + (first + 2u) * params.q_row) / 4u + col;
                if (key != 0u) {
                    r2 = r2 + dq[at];
                }
                dq[at] = r2;
            }
            if (first + 3u < params.queries) {
                let at = (q_base + (first + 3u) * params.q_row) / 4u + col;
                if (key != 0u) {
                    r3 = r3 + dq[at];
                }
                dq[at] = r3;
            }
            if (first + 4u < params.queries) {
                let at = (q_base + (first + 4u) * params.q_row) / 4u + col;
                if (key != 0u) {
                    r4 = r4 + dq[at];
                }
                dq[at] = r4;
            }
            if (first + 5u < params.queries) {
                let at = (q_base + (first + 5u) * params.q_row) / 4u + col;
                if (key != 0u) {
                    r5 = r5 + dq[at];
                }
                dq[at] = r5;
            }
            if (first + 6u < params.queries) {
                let at = (q_base + (first + 6u) * params.q_row) / 4u + col;
                if (key != 0u) {
                    r6 = r6 + dq[at];
                }
                dq[at] = r6;
            }
            if (first + 7u < params.queries) {
                let at = (q_base + (first + 7u) * params.q_row) / 4u + col;
                if (key != 0u) {
                    r7 = r7 + dq[at];
                }
                dq[at] = r7;
            }
        }
        workgroupBarrier();
    }
}
