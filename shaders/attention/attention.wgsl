// softmax(rule(q k^T) + bias) v of each head, and of each row the largest exponent and one over the sum. A workgroup takes 32 queries
// and goes through the keys 32 at a time; an invocation holds two rows of scores in two columns, and of the result the columns
// col, col + 16, ...
// Relies on: up to 256 invocations, 8448 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/attention_scores.wgsl
//#import shared/math.wgsl

// Columns of the result to an invocation.
override COLUMNS: u32 = 16;

@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> stats: array<f32>;

var<workgroup> left: array<f32, 544>;
var<workgroup> right: array<f32, 544>;
var<workgroup> weights: array<f32, 1024>;

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
    let row = lane / 16u;
    let col = lane % 16u;
    let query0 = min(first + row, params.queries - 1u);
    let query1 = min(first + row + 16u, params.queries - 1u);
    var top = vec2<f32>(LOWEST);
    var sum = vec2<f32>(0.0);
    var result: array<vec2<f32>, 16>;
    for (var key = 0u; key < params.keys; key = key + 32u) {
        var s0 = vec2<f32>(0.0);
        var s1 = vec2<f32>(0.0);
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
        let key0 = min(key + col, params.keys - 1u);
        let key1 = min(key + col + 16u, params.keys - 1u);
        let there = vec2<bool>(key + col < params.keys, key + col + 16u < params.keys);
        let e0 = vec2<f32>(exponent(s0.x, b, head, query0, key0), exponent(s0.y, b, head, query1, key0));
        let e1 = vec2<f32>(exponent(s1.x, b, head, query0, key1), exponent(s1.y, b, head, query1, key1));
        weights[row * 32u + col] = select(LOWEST, e0.x, there.x);
        weights[row * 32u + col + 16u] = select(LOWEST, e1.x, there.y);
        weights[(row + 16u) * 32u + col] = select(LOWEST, e0.y, there.x);
        weights[(row + 16u) * 32u + col + 16u] = select(LOWEST, e1.y, there.y);
        workgroupBarrier();
        var largest = top;
        for (var j = 0u; j < 32u; j = j + 1u) {
            largest = max(largest, vec2<f32>(weights[row * 32u + j], weights[(row + 16u) * 32u + j]));
        }
        workgroupBarrier();
        let p0 = select(vec2<f32>(0.0), exp_vec2_(e0 - largest), there.x);
        let p1 = select(vec2<f32>(0.0), exp_vec2_(e1 - largest), there.y);
        weights[row * 32u + col] = p0.x;
        weights[row * 32u + col + 16u] = p1.x;
        weights[(row + 16u) * 32u + col] = p0.y;
        weights[(row + 16u) * 32u + col + 16u] = p1.y;
        workgroupBarrier();
        let factor = exp_vec2_(top - largest);
        top = largest;
        sum = sum * factor;
        for (var i = 0u; i < COLUMNS; i = i + 1u) {
            result[i] = result[i] * factor;
        }
        let count = min(params.keys - key, 32u);
        for (var j = 0u; j < count; j = j + 1u) {
            let p = vec2<f32>(weights[row * 32u + j], weights[(row + 16u) * 32u + j]);
            let at = v_base + (key + j) * params.v_row;
            sum = sum + p;
            for (var i = 0u; i < COLUMNS; i = i + 1u) {
                result[i] = result[i] + p * v[at + min(col + i * 16u, params.value - 1u)];
            }
        }
    }
    let zeros = (params.flags & 2u) != 0u;
    for (var half = 0u; half < 2u; half = half + 1u) {
        let query = first + row + half * 16u;
        if (query >= params.queries) {
            continue;
        }
        let empty = sum[half] == 0.0;
        let over = select(1.0 / sum[half], 0.0, empty && zeros);
        let at = b * params.y_batch + head * params.y_head + query * params.y_row;
        for (var i = 0u; i < COLUMNS; i = i + 1u) {
            if (col + i * 16u < params.value) {
                y[at + col + i * 16u] = result[i][half] * over;
            }
        }
        if (col == 0u) {
            let place = ((b * params.heads + head) * params.queries + query) * 2u;
            stats[place] = select(top[half], 0.0, empty);
            stats[place + 1u] = over;
        }
    }
}
