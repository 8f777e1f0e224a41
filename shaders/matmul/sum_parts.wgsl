// y[i] = sum over p of parts[p * n + i], p in order: what a product whose k was cut into parts ends with. The slot is
// filled where more is done with it.
// Relies on: up to 64 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/math.wgsl

//#slot counts
//#end

struct Params {
    //#slot chunk
    //#end
    n: u32,
    width: u32,
    count: u32,
    row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;
//#slot bindings
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// The end of a sum: the element that stands at i.
fn keep(i: u32, sum: f32) {
    y[i] = sum;
}
//#end

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // Sums are of every row.
    let row0 = 0u;
    //#slot counted
    //#end
    let i = id.x + id.y * params.width;
    if (i >= params.n) {
        return;
    }
    var sum = parts[i];
    for (var p = 1u; p < params.count; p = p + 1u) {
        sum = sum + parts[p * params.n + i];
    }
    keep(i, sum);
}
