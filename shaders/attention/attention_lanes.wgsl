// attention.wgsl for software adapters, of heads whose extents are divisible by four: eight invocations, one vector of the processor,
// take 8 queries and go through the keys 64 at a time. Each computes the scores of every eighth key, then columns of the result,
// which it keeps in y from block to block. Slots are filled where subgroups share what all eight read.
// Relies on: up to 8 invocations, 2176 bytes of workgroup memory, subgroups: 8, 16, 32, 64, 128; f16: no; bindings aligned to 16 bytes.
//#import shared/attention_scores.wgsl
//#import shared/eight_rows.wgsl
//#import shared/math.wgsl

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> stats: array<f32>;

// Eight for each key: those of the queries.
var<workgroup> weights: array<f32, 512>;

//#slot reductions
var<workgroup> part: array<vec4<f32>, 8>;

// The largest and the sum of what the eight have.
fn largest(lane: u32, x: vec4<f32>) -> vec4<f32> {
    part[lane] = x;
    workgroupBarrier();
    var top = part[0];
    for (var l = 1u; l < 8u; l = l + 1u) {
        top = max(top, part[l]);
    }
    workgroupBarrier();
    return top;
}

fn total(lane: u32, x: vec4<f32>) -> vec4<f32> {
    part[lane] = x;
    workgroupBarrier();
    var sum = part[0];
    for (var l = 1u; l < 8u; l = l + 1u) {
        sum = sum + part[l];
    }
    workgroupBarrier();
    return sum;
}
//#end

// An element of the result: what earlier keys gave, times `factor`, and these; times `over`.
fn put_y(inside: bool, at: u32, more: bool, r: vec4<f32>, factor: f32, over: f32) {
    if (inside) {
        if (more) {
            y[at] = (r + y[at] * factor) * over;
        } else {
            y[at] = r * over;
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
    //#slot own
    //#end
    let zeros = (params.flags & 2u) != 0u;
    var top0 = vec4<f32>(LOWEST);
    var top1 = vec4<f32>(LOWEST);
    // Of this invocation's keys.
    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    var over0 = vec4<f32>(1.0);
    var over1 = vec4<f32>(1.0);
    for (var key = 0u; key < params.keys; key = key + 64u) {
        let count = min(params.keys - key, 64u);
        var high0 = top0;
        var high1 = top1;
        for (var left = 0u; left < count; left = left + 8u) {
            let c = left + lane;
            let own = key + min(c, count - 1u);
            let at = (k_base + own * params.k_row) / 4u;
            var s0 = vec4<f32>(0.0);
            var s1 = vec4<f32>(0.0);
            for (var d = 0u; d < width; d = d + 1u) {
                let x = k[at + d];
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
            s0 = exponents(s0, b, head, query0, own);
            s1 = exponents(s1, b, head, query1, own);
            if (c < count) {
                high0 = max(high0, s0);
                high1 = max(high1, s1);
                weights[c * 8u + 0u] = s0.x;
                weights[c * 8u + 1u] = s0.y;
                weights[c * 8u + 2u] = s0.z;
                weights[c * 8u + 3u] = s0.w;
                weights[c * 8u + 4u] = s1.x;
                weights[c * 8u + 5u] = s1.y;
                weights[c * 8u + 6u] = s1.z;
                weights[c * 8u + 7u] = s1.w;
            }
        }
        high0 = largest(lane, high0);
        high1 = largest(lane, high1);
        let factor0 = exp_vec4_(top0 - high0);
        let factor1 = exp_vec4_(top1 - high1);
        top0 = high0;
        top1 = high1;
        sum0 = sum0 * factor0;
        sum1 = sum1 * factor1;
        // Each takes what it has written itself.
        for (var c = lane; c < count; c = c + 8u) {
            let e0 = exp_vec4_(vec4<f32>(weights[c * 8u], weights[c * 8u + 1u], weights[c * 8u + 2u], weights[c * 8u + 3u]) - high0);
            let e1 = exp_vec4_(vec4<f32>(weights[c * 8u + 4u], weights[c * 8u + 5u], weights[c * 8u + 6u], weights[c * 8u + 7u]) - high1);
            sum0 = sum0 + e0;
            sum1 = sum1 + e1;
            weights[c * 8u + 0u] = e0.x;
            weights[c * 8u + 1u] = e0.y;
            weights[c * 8u + 2u] = e0.z;
            weights[c * 8u + 3u] = e0.w;
            weights[c * 8u + 4u] = e1.x;
            weights[c * 8u + 5u] = e1.y;
            weights[c * 8u + 6u] = e1.z;
            weights[c * 8u + 7u] = e1.w;
        }
        workgroupBarrier();
        if (key + 64u >= params.keys) {
            sum0 = total(lane, sum0);
            sum1 = total(lane, sum1);
            over0 = select(1.0 / sum0, vec4<f32>(0.0), (sum0 == vec4<f32>(0.0)) & vec4<bool>(zeros));
            over1 = select(1.0 / sum1, vec4<f32>(0.0), (sum1 == vec4<f32>(0.0)) & vec4<bool>(zeros));
        }
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
                let x = v[(v_base + (key + j) * params.v_row) / 4u + col];
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
            put_y(left + lane < value && first + 0u < params.queries, (y_base + (first + 0u) * params.y_row) / 4u + col, key != 0u, r0, factor0.x, over0.x);
            put_y(left + lane < value && first + 1u < params.queries, (y_base + (first + 1u) * params.y_row) / 4u + col, key != 0u, r1, factor0.y, over0.y);
            put_y(left + lane < value && first + 2u < params.queries, (y_base + (first + 2u) * params.y_row) / 4u + col, key != 0u, r2, factor0.z, over0.z);
            put_y(left + lane < value && first + 3u < params.queries, (y_base + (first + 3u) * params.y_row) / 4u + col, key != 0u, r3, factor0.w, over0.w);
            put_y(left + lane < value && first + 4u < params.queries, (y_base + (first + 4u) * params.y_row) / 4u + col, key != 0u, r4, factor1.x, over1.x);
            put_y(left + lane < value && first + 5u < params.queries, (y_base + (first + 5u) * params.y_row) / 4u + col, key != 0u, r5, factor1.y, over1.y);
            put_y(left + lane < value && first + 6u < params.queries, (y_base + (first + 6u) * params.y_row) / 4u + col, key != 0u, r6, factor1.z, over1.z);
            put_y(left + lane < value && first + 7u < params.queries, (y_base + (first + 7u) * params.y_row) / 4u + col, key != 0u, r7, factor1.w, over1.w);
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
