// The losses of a chunk's rows from their logits, of which `n` columns from `start` on are here; one workgroup a row. The largest
// logit, the sum of exponentials under it and the label's logit go from part to part; the last part writes the loss.
// Relies on: up to 256 invocations, 1024 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/chunks.wgsl
//#import shared/math.wgsl
//#import shared/workgroup_reductions.wgsl

const FIRST: u32 = 1u;
const LAST: u32 = 2u;
const BIAS: u32 = 4u;

@group(0) @binding(1) var<storage, read> labels: array<i32>;
@group(0) @binding(2) var<storage, read> order: array<i32>;
@group(0) @binding(3) var<storage, read> counts: array<i32>;
@group(0) @binding(4) var<storage, read_write> x: array<f32>;
@group(0) @binding(5) var<storage, read_write> stats: array<f32>;
@group(0) @binding(6) var<storage, read_write> loss: array<f32>;
@group(0) @binding(7) var<storage, read> bias: array<f32>;

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * params.width;
    if (row >= u32(counts[params.chunk])) {
        return;
    }
    let home = u32(order[params.chunk * params.chunk_rows + row]);
    let base = row * params.n;
    if ((params.flags & BIAS) != 0u) {
        for (var i = lane; i < params.n; i = i + SIZE) {
            x[base + i] = x[base + i] + bias[params.start + i];
        }
    }
    let first = (params.flags & FIRST) != 0u;
    // Every invocation reads what it wrote itself.
    var top = -3.4e38;
    for (var i = lane; i < params.n; i = i + SIZE) {
        top = max(top, x[base + i]);
    }
    top = largest(lane, top);
    var before = 0.0;
    var own = 0.0;
    if (!first) {
        let highest = max(top, stats[3u * row]);
        before = stats[3u * row + 1u] * exp_(stats[3u * row] - highest);
        own = stats[3u * row + 2u];
        top = highest;
    }
    var sum = 0.0;
    for (var i = lane; i < params.n; i = i + SIZE) {
        sum = sum + exp_(x[base + i] - top);
    }
    sum = total(lane, sum) + before;
    let label = min(u32(labels[home]), params.columns - 1u);
    let hit = label - params.start;
    if (label >= params.start && hit < params.n && lane == hit % SIZE) {
        own = x[base + hit];
    }
    storageBarrier();
    if (lane == hit % SIZE) {
        stats[3u * row] = top;
        stats[3u * row + 1u] = sum;
        stats[3u * row + 2u] = own;
        if ((params.flags & LAST) != 0u) {
            loss[home] = top + log_(sum) - own;
        }
    }
}
