// Windows of images: output[b, place, (c, kh, kw)] = input[b, c, h, w], zero beyond the edges; one invocation an element.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/windows.wgsl

@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.n) {
        return;
    }
    let window = params.channels * params.kernel.x * params.kernel.y;
    let k = i % window;
    let row = i / window;
    let place = row % (params.places.x * params.places.y);
    let b = row / (params.places.x * params.places.y);
    let channel = k / (params.kernel.x * params.kernel.y);
    let tap = vec2<u32>(k / params.kernel.y % params.kernel.x, k % params.kernel.y);
    let corner = vec2<u32>(place / params.places.y, place % params.places.y) * params.stride;
    // A coordinate before the image wraps around to one far beyond it.
    let at = corner + tap * params.dilation - params.pad;
    var value = 0.0;
    if (at.x < params.size.x && at.y < params.size.y) {
        value = input[((b * params.channels + channel) * params.size.x + at.x) * params.size.y + at.y];
    }
    output[i] = value;
}
