// Of each row of attention's result: what the forward pass kept, and the product of the result and its gradient. One invocation a row.
// Relies on: up to 64 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/attention_scores.wgsl

@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read> stats: array<f32>;
@group(0) @binding(4) var<storage, read_write> rows: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let index = at.x + at.y * params.grid;
    if (index >= params.batch * params.heads * params.queries) {
        return;
    }
    let query = index % params.queries;
    let head = index / params.queries % params.heads;
    let b = index / params.queries / params.heads;
    let base = b * params.y_batch + head * params.y_head + query * params.y_row;
    var delta = 0.0;
    for (var i = 0u; i < params.value; i = i + 1u) {
        delta = delta + g[base + i] * y[base + i];
    }
    rows[index * 3u] = stats[index * 2u];
    rows[index * 3u + 1u] = stats[index * 2u + 1u];
    rows[index * 3u + 2u] = delta;
}
