// The numbers of the rows whose label is not negative, in order, and how many of them each chunk of rows has; one workgroup.
// Relies on: up to 256 invocations, 1024 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

override SIZE: u32 = 64;

struct Params {
    rows: u32,
    chunk_rows: u32,
    chunks: u32,
    unused0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> labels: array<i32>;
@group(0) @binding(2) var<storage, read_write> order: array<i32>;
@group(0) @binding(3) var<storage, read_write> counts: array<i32>;

var<workgroup> found: array<u32, SIZE>;

@compute @workgroup_size(SIZE)
fn main(@builtin(local_invocation_index) lane: u32) {
    // Each invocation has a stretch of rows of its own.
    let each = (params.rows + SIZE - 1u) / SIZE;
    let first = min(lane * each, params.rows);
    let end = min(first + each, params.rows);
    var own = 0u;
    for (var r = first; r < end; r = r + 1u) {
        own = own + select(0u, 1u, labels[r] >= 0);
    }
    found[lane] = own;
    workgroupBarrier();
    var before = 0u;
    var total = 0u;
    for (var i = 0u; i < SIZE; i = i + 1u) {
        before = before + select(0u, found[i], i < lane);
        total = total + found[i];
    }
    for (var r = first; r < end; r = r + 1u) {
        if (labels[r] >= 0) {
            order[before] = i32(r);
            before = before + 1u;
        }
    }
    for (var c = lane; c < params.chunks; c = c + SIZE) {
        let start = min(c * params.chunk_rows, total);
        counts[c] = i32(min(total - start, params.chunk_rows));
    }
}
