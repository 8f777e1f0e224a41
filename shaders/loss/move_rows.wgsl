// The rows of a chunk that count: taken out of all rows one after the other (mode 1; zeros in rows that are left over), put
// back where they came from (mode 2), or added to what is there (mode 3).
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    total: u32,
    width: u32,
    n: u32,
    chunk: u32,
    chunk_rows: u32,
    mode: u32,
    unused0: u32,
    unused1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read> order: array<i32>;
@group(0) @binding(3) var<storage, read> counts: array<i32>;
@group(0) @binding(4) var<storage, read_write> result: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    let count = u32(counts[params.chunk]);
    if (i >= params.total || count == 0u) {
        return;
    }
    let row = i / params.n;
    if (row >= count) {
        if (params.mode == 1u) {
            result[i] = 0.0;
        }
        return;
    }
    let at = u32(order[params.chunk * params.chunk_rows + row]) * params.n + i % params.n;
    if (params.mode == 1u) {
        result[i] = source[at];
    } else if (params.mode == 2u) {
        result[at] = source[i];
    } else {
        result[at] = result[at] + source[i];
    }
}
