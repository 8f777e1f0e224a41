// The gradients of attention in k and v. A workgroup takes 32 keys of one head of keys and goes through the queries of every head that
// shares it, 32 at a time; an invocation holds two rows (keys) of scores in two columns (queries), and of the gradients the
// columns col, col + 16, ...
// Relies on: up to 256 invocations, 12544 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/attention_scores.wgsl

// Columns of the gradients to an invocation.
override COLUMNS_K: u32 = 16;
override COLUMNS_V: u32 = 16;

@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(5) var<storage, read> g: array<f32>;
@group(0) @binding(6) var<storage, read> rows: array<f32>;
@group(0) @binding(7) var<storage, read_write> dk: array<f32>;
@group(0) @binding(8) var<storage, read_write> dv: array<f32>;

var<workgroup> left: array<f32, 544>;
var<workgroup> right: array<f32, 544>;
var<workgroup> weights: array<f32, 1024>;
var<workgroup> slopes: array<f32, 1024>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.x + group.y * params.grid;
    let shared_heads = params.heads / params.share;
    if (index >= params.batch * shared_heads * params.tiles) {
        return;
    }
    let first = index % params.tiles * 32u;
    let kv = index / params.tiles % shared_heads;
    let b = index / params.tiles / shared_heads;
    let k_base = b * params.k_batch + kv * params.k_head;
    let v_base = b * params.v_batch + kv * params.v_head;
    let row = lane / 16u;
    let col = lane % 16u;
    let key0 = min(first + row, params.keys - 1u);
    let key1 = min(first + row + 16u, params.keys - 1u);
    var in_k: array<vec2<f32>, 16>;
    var in_v: array<vec2<f32>, 16>;
    for (var head = kv * params.share; head < (kv + 1u) * params.share; head = head + 1u) {
        let q_base = b * params.q_batch + head * params.q_head;
        let g_base = b * params.y_batch + head * params.y_head;
        for (var query = 0u; query < params.queries; query = query + 32u) {
            var s0 = vec2<f32>(0.0);
            var s1 = vec2<f32>(0.0);
            var t0 = vec2<f32>(0.0);
            var t1 = vec2<f32>(0.0);
            for (var d = 0u; d < params.width; d = d + 16u) {
                workgroupBarrier();
                for (var i = lane; i < 512u; i = i + 256u) {
                    let r = i / 16u;
                    let x = d + i % 16u;
                    let l = first + r;
                    let o = query + r;
                    left[r * 17u + i % 16u] = 0.0;
                    right[r * 17u + i % 16u] = 0.0;
                    if (x < params.width && l < params.keys) {
                        left[r * 17u + i % 16u] = k[k_base + l * params.k_row + x];
                    }
                    if (x < params.width && o < params.queries) {
                        right[r * 17u + i % 16u] = q[q_base + o * params.q_row + x];
                    }
                }
                workgroupBarrier();
                for (var x = 0u; x < 16u; x = x + 1u) {
                    let rows = vec2<f32>(left[row * 17u + x], left[(row + 16u) * 17u + x]);
                    s0 = s0 + rows * right[col * 17u + x];
                    s1 = s1 + rows * right[(col + 16u) * 17u + x];
                }
            }
            for (var d = 0u; d < params.value; d = d + 16u) {
                workgroupBarrier();
                for (var i = lane; i < 512u; i = i + 256u) {
                    let r = i / 16u;
                    let x = d + i % 16u;
                    let l = first + r;
                    let o = query + r;
                    left[r * 17u + i % 16u] = 0.0;
                    right[r * 17u + i % 16u] = 0.0;
                    if (x < params.value && l < params.keys) {
                        left[r * 17u + i % 16u] = v[v_base + l * params.v_row + x];
                    }
                    if (x < params.value && o < params.queries) {
                        right[r * 17u + i % 16u] = g[g_base + o * params.y_row + x];
                    }
                }
                workgroupBarrier();
                for (var x = 0u; x < 16u; x = x + 1u) {
                    let rows = vec2<f32>(left[row * 17u + x], left[(row + 16u) * 17u + x]);
                    t0 = t0 + rows * right[col * 17u + x];
                    t1 = t1 + rows * right[(col + 16u) * 17u + x];
                }
            }
            let query0 = min(query + col, params.queries - 1u);
            let query1 = min(query + col + 16u, params.queries - 1u);
            let rows0 = ((b * params.heads + head) * params.queries + query0) * 3u;
            let rows1 = ((b * params.heads + head) * params.queries + query1) * 3u;
            let w00 = weight(s0.x, b, head, query0, key0, rows[rows0], rows[rows0 + 1u]);
            let w01 = weight(s1.x, b, head, query1, key0, rows[rows1], rows[rows1 + 1u]);
            let w10 = weight(s0.y, b, head, query0, key1, rows[rows0], rows[rows0 + 1u]);
            let w11 = weight(s1.y, b, head, query1, key1, rows[rows1], rows[rows1 + 1u]);
            weights[row * 32u + col] = w00.x;
            weights[row * 32u + col + 16u] = w01.x;
            weights[(row + 16u) * 32u + col] = w10.x;
            weights[(row + 16u) * 32u + col + 16u] = w11.x;
            slopes[row * 32u + col] = w00.x * (t0.x - rows[rows0 + 2u]) * w00.y;
            slopes[row * 32u + col + 16u] = w01.x * (t1.x - rows[rows1 + 2u]) * w01.y;
            slopes[(row + 16u) * 32u + col] = w10.x * (t0.y - rows[rows0 + 2u]) * w10.y;
            slopes[(row + 16u) * 32u + col + 16u] = w11.x * (t1.y - rows[rows1 + 2u]) * w11.y;
            workgroupBarrier();
            let count = min(params.queries - query, 32u);
            for (var j = 0u; j < count; j = j + 1u) {
                let p = vec2<f32>(weights[row * 32u + j], weights[(row + 16u) * 32u + j]);
                let ds = vec2<f32>(slopes[row * 32u + j], slopes[(row + 16u) * 32u + j]);
                let g_at = g_base + (query + j) * params.y_row;
                let q_at = q_base + (query + j) * params.q_row;
                for (var i = 0u; i < COLUMNS_V; i = i + 1u) {
                    in_v[i] = in_v[i] + p * g[g_at + min(col + i * 16u, params.value - 1u)];
                }
                for (var i = 0u; i < COLUMNS_K; i = i + 1u) {
                    in_k[i] = in_k[i] + ds * q[q_at + min(col + i * 16u, params.width - 1u)];
                }
            }
        }
    }
    for (var half = 0u; half < 2u; half = half + 1u) {
        let key = first + row + half * 16u;
        if (key >= params.keys) {
            continue;
        }
        for (var i = 0u; i < COLUMNS_V; i = i + 1u) {
            if (col + i * 16u < params.value) {
                dv[v_base + key * params.v_row + col + i * 16u] = in_v[i][half];
            }
        }
        for (var i = 0u; i < COLUMNS_K; i = i + 1u) {
            if (col + i * 16u < params.width) {
                dk[k_base + key * params.k_row + col + i * 16u] = in_k[i][half];
            }
        }
    }
}
