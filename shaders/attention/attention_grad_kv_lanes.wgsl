// attention_grad_kv.wgsl for software adapters, of heads whose extents are divisible by four: eight invocations take 8 keys of one head
// of keys and go through the queries of every head that shares it, 64 at a time. Each computes the scores of every eighth
// query, then columns of the gradients, which it keeps in dk and dv from block to block.
// Relies on: up to 8 invocations, 4096 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 16 bytes.
//#import shared/attention_scores.wgsl
//#import shared/math.wgsl

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> rows: array<f32>;
@group(0) @binding(7) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> dv: array<vec4<f32>>;

var<workgroup> weights: array<f32, 512>;
var<workgroup> slopes: array<f32, 512>;

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
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
    for (var head = kv * params.share; head < (kv + 1u) * params.share; head = head + 1u) {
        let q_base = b * params.q_batch + head * params.q_head;
        let y_base = b * params.y_batch + head * params.y_head;
        for (var query = 0u; query < params.queries; query = query + 64u) {
            let begin = query == 0u && head == kv * params.share;
            let count = min(params.queries - query, 64u);
            for (var c = lane; c < count; c = c + 8u) {
                let q_at = (q_base + (query + c) * params.q_row) / 4u;
                let g_at = (y_base + (query + c) * params.y_row) / 4u;
                var s0 = vec4<f32>(0.0);
                var s1 = vec4<f32>(0.0);
                for (var d = 0u; d < width; d = d + 1u) {
                    let x = q[q_at + d];
                    s0 = s0 + vec4<f32>(dot(k[k0 + d], x), dot(k[k1 + d], x), dot(k[k2 + d], x), dot(k[k3 + d], x));
                    s1 = s1 + vec4<f32>(dot(k[k4 + d], x), dot(k[k5 + d], x), dot(k[k6 + d], x), dot(k[k7 + d], x));
                }
                var t0 = vec4<f32>(0.0);
                var t1 = vec4<f32>(0.0);
                for (var d = 0u; d < value; d = d + 1u) {
                    let x = g[g_at + d];
                    t0 = t0 + vec4<f32>(dot(v[v0 + d], x), dot(v[v1 + d], x), dot(v[v2 + d], x), dot(v[v3 + d], x));
                    t1 = t1 + vec4<f32>(dot(v[v4 + d], x), dot(v[v5 + d], x), dot(v[v6 + d], x), dot(v[v7 + d], x));
                }
                var e0 = ruled(s0);
                var e1 = ruled(s1);
                if ((params.flags & 1u) != 0u) {
                    let at = b * params.bias_batch + head * params.bias_head + (query + c) * params.bias_query;
                    e0.e = e0.e + vec4<f32>(bias[at + key0.x * params.bias_key], bias[at + key0.y * params.bias_key], bias[at + key0.z * params.bias_key], bias[at + key0.w * params.bias_key]);
                    e1.e = e1.e + vec4<f32>(bias[at + key1.x * params.bias_key], bias[at + key1.y * params.bias_key], bias[at + key1.z * params.bias_key], bias[at + key1.w * params.bias_key]);
                }
                let row = ((b * params.heads + head) * params.queries + query + c) * 3u;
                s0 = exp_vec4_(e0.e - rows[row]) * rows[row + 1u];
                s1 = exp_vec4_(e1.e - rows[row]) * rows[row + 1u];
                t0 = s0 * (t0 - rows[row + 2u]) * e0.slope;
                t1 = s1 * (t1 - rows[row + 2u]) * e1.slope;
                weights[0u + c] = s0.x;
                weights[64u + c] = s0.y;
                weights[128u + c] = s0.z;
                weights[192u + c] = s0.w;
                weights[256u + c] = s1.x;
                weights[320u + c] = s1.y;
                weights[384u + c] = s1.z;
                weights[448u + c] = s1.w;
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
                    let x = g[(y_base + (query + j) * params.y_row) / 4u + col];
                    r0 = r0 + weights[0u + j] * x;
                    r1 = r1 + weights[64u + j] * x;
                    r2 = r2 + weights[128u + j] * x;
                    r3 = r3 + weights[192u + j] * x;
                    r4 = r4 + weights[256u + j] * x;
                    r5 = r5 + weights[320u + j] * x;
                    r6 = r6 + weights[384u + j] * x;
                    r7 = r7 + weights[448u + j] * x;
                }
                if (first + 0u < params.keys) {
                    let at = (v_base + (first + 0u) * params.v_row) / 4u + col;
                    if (!begin) {
                        r0 = r0 + dv[at];
                    }
                    dv[at] = r0;
                }
                if (first + 1u < params.keys) {
                    let at = (v_base + (first + 1u) * params.v_row) / 4u + col;
                    if (!begin) {
                        r1 = r1 + dv[at];
                    }
                    dv[at] = r1;
                }
                if (first + 2u < params.keys) {
                    let at = (v_base + (first + 2u) * params.v_row) / 4u + col;
                    if (!begin) {
                        r2 = r2 + dv[at];
                    }
                    dv[at] = r2;
                }
                if (first + 3u < params.keys) {
                    let at = (v_base + (first + 3u) * params.v_row) / 4u + col;
                    if (!begin) {
                        r3 = r3 + dv[at];
                    }
                    dv[at] = r3;
                }
                if (first + 4u < params.keys) {
                    let at = (v_base + (first + 4u) * params.v_row) / 4u + col;
                    if (!begin) {
                        r4 = r4 + dv[at];
                    }
                    dv[at] = r4;
                }
                if (first + 5u < params.keys) {
                    let at = (v_base + (first + 5u) * params.v_row) / 4u + col;
                    if (!begin) {
                        r5 = r5 + dv[at];
                    }
                    dv[at] = r5;
                }
                if (first + 6u < params.keys) {
                    let at = (v_base + (first + 6u) * params.v_row) / 4u + col;
                    if (!begin) {
                        r6 = r6 + dv[at];
                    }
                    dv[at] = r6;
                }
                if (first + 7u < params.keys) {
                    let at = (v_base + (first + 7u) * params.v_row) / 4u + col;
                    if (!begin) {
                        r7 = r7 + dv[at];
                    }
                    dv[at] = r7;
                }
            }
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
                    let x = q[(q_base + (query + j) * params.q_row) / 4u + col];
                    r0 = r0 + slopes[0u + j] * x;
                    r1 = r1 + slopes[64u + j] * x;
                    r2 = r2 + slopes[128u + j] * x;
                    r3 = r3 + slopes[192u + j] * x;
                    r4 = r4 + slopes[256u + j] * x;
                    r5 = r5 + slopes[320u + j] * x;
                    r6 = r6 + slopes[384u + j] * x;
                    r7 = r7 + slopes[448u + j] * x;
                }
                if (first + 0u < params.keys) {
                    let at = (k_base + (first + 0u) * params.k_row) / 4u + col;
                    if (!begin) {
                        r0 = r0 + dk[at];
                    }
                    dk[at] = r0;
                }
                if (first + 1u < params.keys) {
                    let at = (k_base + (first + 1u) * params.k_row) / 4u + col;
                    if (!begin) {
                        r1 = r1 + dk[at];
                    }
                    dk[at] = r1;
                }
                if (first + 2u < params.keys) {
                    let at = (k_base + (first + 2u) * params.k_row) / 4u + col;
                    if (!begin) {
                        r2 = r2 + dk[at];
                    }
                    dk[at] = r2;
                }
                if (first + 3u < params.keys) {
                    let at = (k_base + (first + 3u) * params.k_row) / 4u + col;
                    if (!begin) {
                        r3 = r3 + dk[at];
                    }
                    dk[at] = r3;
                }
                if (first + 4u < params.keys) {
                    let at = (k_base + (first + 4u) * params.k_row) / 4u + col;
                    if (!begin) {
                        r4 = r4 + dk[at];
                    }
                    dk[at] = r4;
                }
                if (first + 5u < params.keys) {
                    let at = (k_base + (first + 5u) * params.k_row) / 4u + col;
                    if (!begin) {
                        r5 = r5 + dk[at];
                    }
                    dk[at] = r5;
                }
                if (first + 6u < params.keys) {
                    let at = (k_base + (first + 6u) * params.k_row) / 4u + col;
                    if (!begin) {
                        r6 = r6 + dk[at];
                    }
                    dk[at] = r6;
                }
                if (first + 7u < params.keys) {
                    let at = (k_base + (first + 7u) * params.k_row) / 4u + col;
                    if (!begin) {
                        r7 = r7 + dk[at];
                    }
                    dk[at] = r7;
                }
            }
            workgroupBarrier();
        }
    }
}
