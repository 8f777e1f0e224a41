// The parameters of a chunk's losses.

struct Params {
    width: u32,
    n: u32,
    start: u32,
    columns: u32,
    chunk: u32,
    chunk_rows: u32,
    flags: u32,
    unused0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
