// attention.wgsl for software adapters, of heads whose extents are divisible by four: eight invocations, one vector of the processor,
// take 8 queries and go through the keys 64 at a time. Each computes the scores of every eighth key, then columns of the result,
// which it keeps in y from block to block.
// Relies on: up to 8 invocations, 2304 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 16 bytes.
//#import shared/attention_scores.wgsl
//#import shared/math.wgsl

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> stats: array<f32>;

var<workgroup> weights: array<f32, 512>;
var<workgroup> tops: array<f32, 64>;

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
    let zeros = (params.flags & 2u) != 0u;
    var top0 = vec4<f32>(LOWEST);
    var top1 = vec4<f32>(LOWEST);
    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    var over0 = vec4<f32>(1.0);
    var over1 = vec4<f32>(1.0);
    for (var key = 0u; key < params.keys; key = key + 64u) {
        let count = min(params.keys - key, 64u);
        var high0 = top0;
        var high1 = top1;
        for (var c = lane; c < count; c = c + 8u) {
            let at = (k_base + (key + c) * params.k_row) / 4u;
            var s0 = vec4<f32>(0.0);
            var s1 = vec4<f32>(0.0);
            for (var d = 0u; d < width; d = d + 1u) {
                let x = k[at + d];
                s0 = s0 + vec4<f32>(dot(q[q0 + d], x), dot(q[q1 + d], x), dot(q[q2 + d], x), dot(q[q3 + d], x));
                s1 = s1 + vec4<f32>(dot(q[q4 + d], x), dot(q[q5 + d], x), dot(q[q6 + d], x), dot(q[q7 + d], x));
            }
            s0 = exponents(s0, b, head, query0, key + c);
            s1 = exponents(s1, b, head, query1, key + c);
            high0 = max(high0, s0);
            high1 = max(high1, s1);
            weights[0u + c] = s0.x;
            weights[64u + c] = s0.y;
            weights[128u + c] = s0.z;
            weights[192u + c] = s0.w;
            weights[256u + c] = s1.x;
            weights[320u + c] = s1.y;
            weights[384u + c] = s1.z;
            weights[448u + c] = s1.w;
        }
        tops[lane * 8u + 0u] = high0.x;
        tops[lane * 8u + 1u] = high0.y;
        tops[lane * 8u + 2u] = high0.z;
        tops[lane * 8u + 3u] = high0.w;
        tops[lane * 8u + 4u] = high1.x;
        tops[lane * 8u + 5u] = high1.y;
        tops[lane * 8u + 6u] = high1.z;
        tops[lane * 8u + 7u] = high1.w;
        workgroupBarrier();
        for (var l = 0u; l < 8u; l = l + 1u) {
            high0 = max(high0, vec4<f32>(tops[l * 8u], tops[l * 8u + 1u], tops[l * 8u + 2u], tops[l * 8u + 3u]));
            high1 = max(high1, vec4<f32>(tops[l * 8u + 4u], tops[l * 8u + 5u], tops[l * 8u + 6u], tops[l * 8u + 7u]));
        }
        for (var c = lane; c < count; c = c + 8u) {
            weights[0u + c] = exp_(weights[0u + c] - high0.x);
            weights[64u + c] = exp_(weights[64u + c] - high0.y);
            weights[128u + c] = exp_(weights[128u + c] - high0.z);
            weights[192u + c] = exp_(weights[192u + c] - high0.w);
            weights[256u + c] = exp_(weights[256u + c] - high1.x);
            weights[320u + c] = exp_(weights[320u + c] - high1.y);
            weights[384u + c] = exp_(weights[384u + c] - high1.z);
            weights[448u + c] = exp_(weights[448u + c] - high1.w);
        }
        workgroupBarrier();
        let factor0 = exp_vec4_(top0 - high0);
        let factor1 = exp_vec4_(top1 - high1);
        top0 = high0;
        top1 = high1;
        sum0 = sum0 * factor0;
        sum1 = sum1 * factor1;
        for (var j = 0u; j < count; j = j + 1u) {
            sum0 = sum0 + vec4<f32>(weights[j], weights[64u + j], weights[128u + j], weights[192u + j]);
            sum1 = sum1 + vec4<f32>(weights[256u + j], weights[320u + j], weights[384u + j], weights[448u + j]);
        }
        if (key + 64u >= params.keys) {
            over0 = select(1.0 / sum0, vec4<f32>(0.0), (sum0 == vec4<f32>(0.0)) & vec4<bool>(zeros));
            over1 = select(1.0 / sum1, vec4<f32>(0.0), (sum1 == vec4<f32>(0.0)) & vec4<bool>(zeros));
        }
        for (var col = lane; col < value; col = col + 8u) {
            var r0 = vec4<f32>(0.0);
            var r1 = vec4<f32>(0.0);
            var r2 = vec4<f32>(0.0);
            var r3 = vec4<f32>(0.0);
            var r4 = vec4<f32>(0.0);
            var r5 = vec4<f32>(0.0);
            var r6 = vec4<f32>(0.0);
            var r7 = vec4<f32>(0.0);
            for (var j = 0u; j < count; j = j + 1u) {
                let x = v[(v_base + (key + j) * params.v_row) / 4u + col];
                r0 = r0 + weights[0u + j] * x;
                r1 = r1 + weights[64u + j] * x;
                r2 = r2 + weights[128u + j] * x;
                r3 = r3 + weights[192u + j] * x;
                r4 = r4 + weights[256u + j] * x;
                r5 = r5 + weights[320u + j] * x;
                r6 = r6 + weights[384u + j] * x;
                r7 = r7 + weights[448u + j] * x;
            }
            if (first + 0u < params.queries) {
                let at = (y_base + (first + 0u) * params.y_row) / 4u + col;
                if (key != 0u) {
                    r0 = r0 + y[at] * factor0.x;
                }
                y[at] = r0 * over0.x;
            }
            if (first + 1u < params.queries) {
                let at = (y_base + (first + 1u) * params.y_row) / 4u + col;
                if (key != 0u) {
                    r1 = r1 + y[at] * factor0.y;
                }
                y[at] = r1 * over0.y;
            }
            if (first + 2u < params.queries) {
                let at = (y_base + (first + 2u) * params.y_row) / 4u + col;
                if (key != 0u) {
                    r2 = r2 + y[at] * factor0.z;
                }
                y[at] = r2 * over0.z;
            }
            if (first + 3u < params.queries) {
                let at = (y_base + (first + 3u) * params.y_row) / 4u + col;
                if (key != 0u) {
                    r3 = r3 + y[at] * factor0.w;
                }
                y[at] = r3 * over0.w;
            }
            if (first + 4u < params.queries) {
                let at = (y_base + (first + 4u) * params.y_row) / 4u + col;
                if (key != 0u) {
                    r4 = r4 + y[at] * factor1.x;
                }
                y[at] = r4 * over1.x;
            }
            if (first + 5u < params.queries) {
                let at = (y_base + (first + 5u) * params.y_row) / 4u + col;
                if (key != 0u) {
                    r5 = r5 + y[at] * factor1.y;
                }
                y[at] = r5 * over1.y;
            }
            if (first + 6u < params.queries) {
                let at = (y_base + (first + 6u) * params.y_row) / 4u + col;
                if (key != 0u) {
                    r6 = r6 + y[at] * factor1.z;
                }
                y[at] = r6 * over1.z;
            }
            if (first + 7u < params.queries) {
                let at = (y_base + (first + 7u) * params.y_row) / 4u + col;
                if (key != 0u) {
                    r7 = r7 + y[at] * factor1.w;
                }
                y[at] = r7 * over1.w;
            }
        }
        workgroupBarrier();
    }
    if (first + lane < params.queries) {
        let half = lane / 4u;
        let i = lane % 4u;
        let place = ((b * params.heads + head) * params.queries + first + lane) * 2u;
        let top = select(top0[i], top1[i], half == 1u);
        let sum = select(sum0[i], sum1[i], half == 1u);
        stats[place] = select(top, 0.0, sum == 0.0);
        stats[place + 1u] = select(over0[i], over1[i], half == 1u);
    }
}
