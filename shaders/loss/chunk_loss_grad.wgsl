// Logits of a chunk's rows, of which `n` columns from `start` on are here, become the gradients of the rows' losses; one workgroup a
// row.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/chunks.wgsl
//#import shared/math.wgsl

override SIZE: u32 = 64;

@group(0) @binding(1) var<storage, read> labels: array<i32>;
@group(0) @binding(2) var<storage, read> order: array<i32>;
@group(0) @binding(3) var<storage, read> counts: array<i32>;
@group(0) @binding(4) var<storage, read_write> x: array<f32>;
@group(0) @binding(5) var<storage, read> stats: array<f32>;

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * params.width;
    if (row >= u32(counts[params.chunk])) {
        return;
    }
    let home = u32(order[params.chunk * params.chunk_rows + row]);
    let log_sum = stats[3u * row] + log_(stats[3u * row + 1u]);
    let label = min(u32(labels[home]), params.columns - 1u);
    let base = row * params.n;
    for (var i = lane; i < params.n; i = i + SIZE) {
        x[base + i] = exp_(x[base + i] - log_sum) - select(0.0, 1.0, params.start + i == label);
    }
}
