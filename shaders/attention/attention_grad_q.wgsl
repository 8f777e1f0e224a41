// The gradient of attention in q. A workgroup takes 32 queries and goes through the keys 32 at a time; an invocation holds two rows of
// scores in two columns, and of the gradient the columns col, col + 16, ...
// Relies on: up to 256 invocations, 8448 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/attention_scores.wgsl

// Columns of the gradient to an invocation.
override COLUMNS: u32 = 16;

@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(5) var<storage, read> g: array<f32>;
@group(0) @binding(6) var<storage, read> rows: array<f32>;
@group(0) @binding(7) var<storage, read_write> dq: array<f32>;

var<workgroup> left: array<f32, 544>;
var<workgroup> right: array<f32, 544>;
var<workgroup> slopes: array<f32, 1024>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.x + group.y * params.grid;
    if (index >= params.batch * params.heads * params.tiles) {
        return;
    }
    let first = index % params.tiles * 32u;
    let head = index / params.tiles % params.heads;
    let b = index / params.tiles / params.heads;
    let q_base = b * params.q_batch + head * params.q_head;
    let k_base = b * params.k_batch + head / params.share * params.k_head;
    let v_base = b * params.v_batch + head / params.share * params.v_head;
    let g_base = b * params.y_batch + head * params.y_head;
    let row = lane / 16u;
    let col = lane % 16u;
    let query0 = min(first + row, params.queries - 1u);
    let query1 = min(first + row + 16u, params.queries - 1u);
    let rows0 = ((b * params.heads + head) * params.queries + query0) * 3u;
    let rows1 = ((b * params.heads + head) * params.queries + query1) * 3u;
    let delta = vec2<f32>(rows[rows0 + 2u], rows[rows1 + 2u]);
    var result: array<vec2<f32>, 16>;
    for (var key = 0u; key < params.keys; key = key + 32u) {
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
                let o = key + r;
                left[r * 17u + i % 16u] = 0.0;
                right[r * 17u + i % 16u] = 0.0;
                if (x < params.width && l < params.queries) {
                    left[r * 17u + i % 16u] = q[q_base + l * params.q_row + x];
                }
                if (x < params.width && o < params.keys) {
                    right[r * 17u + i % 16u] = k[k_base + o * params.k_row + x];
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
                let o = key + r;
                left[r * 17u + i % 16u] = 0.0;
                right[r * 17u + i % 16u] = 0.0;
                if (x < params.value && l < params.queries) {
                    left[r * 17u + i % 16u] = g[g_base + l * params.y_row + x];
                }
                if (x < params.value && o < params.keys) {
                    right[r * 17u + i % 16u] = v[v_base + o * params.v_row + x];
                }
            }
            workgroupBarrier();
            for (var x = 0u; x < 16u; x = x + 1u) {
                let rows = vec2<f32>(left[row * 17u + x], left[(row + 16u) * 17u + x]);
                t0 = t0 + rows * right[col * 17u + x];
                t1 = t1 + rows * right[(col + 16u) * 17u + x];
            }
        }
        let key0 = min(key + col, params.keys - 1u);
        let key1 = min(key + col + 16u, params.keys - 1u);
        let w00 = weight(s0.x, b, head, query0, key0, rows[rows0], rows[rows0 + 1u]);
        let w01 = weight(s1.x, b, head, query0, key1, rows[rows0], rows[rows0 + 1u]);
        let w10 = weight(s0.y, b, head, query1, key0, rows[rows1], rows[rows1 + 1u]);
        let w11 = weight(s1.y, b, head, query1, key1, rows[rows1], rows[rows1 + 1u]);
        slopes[row * 32u + col] = w00.x * (t0.x - delta.x) * w00.y;
        slopes[row * 32u + col + 16u] = w01.x * (t1.x - delta.x) * w01.y;
        slopes[(row + 16u) * 32u + col] = w10.x * (t0.y - delta.y) * w10.y;
        slopes[(row + 16u) * 32u + col + 16u] = w11.x * (t1.y - delta.y) * w11.y;
        workgroupBarrier();
        let count = min(params.keys - key, 32u);
        for (var j = 0u; j < count; j = j + 1u) {
            let ds = vec2<f32>(slopes[row * 32u + j], slopes[(row + 16u) * 32u + j]);
            let at = k_base + (key + j) * params.k_row;
            for (var i = 0u; i < COLUMNS; i = i + 1u) {
                result[i] = result[i] + ds * k[at + min(col + i * 16u, params.width - 1u)];
            }
        }
    }
    for (var half = 0u; half < 2u; half = half + 1u) {
        let query = first + row + half * 16u;
        for (var i = 0u; i < COLUMNS; i = i + 1u) {
            if (query < params.queries && col + i * 16u < params.width) {
                dq[q_base + query * params.q_row + col + i * 16u] = result[i][half];
            }
        }
    }
}
