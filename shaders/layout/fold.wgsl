// The gradient of windows of images: output[b, c, h, w] = the sum of input[b, place, (c, kh, kw)] over the windows that see
// it; one invocation a pixel, so that sums need no atomics.
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
    let v = i % params.size.y;
    let h = i / params.size.y % params.size.x;
    let channel = i / (params.size.x * params.size.y) % params.channels;
    let b = i / (params.size.x * params.size.y * params.channels);
    var sum = 0.0;
    for (var kh = 0u; kh < params.kernel.x; kh = kh + 1u) {
        // A distance before the first place wraps around to one far beyond the last.
        let down = h + params.pad.x - kh * params.dilation.x;
        let oh = down / params.stride.x;
        if (oh >= params.places.x || oh * params.stride.x != down) {
            continue;
        }
        for (var kw = 0u; kw < params.kernel.y; kw = kw + 1u) {
            let right = v + params.pad.y - kw * params.dilation.y;
            let ow = right / params.stride.y;
            if (ow >= params.places.y || ow * params.stride.y != right) {
                continue;
            }
            let place = (b * params.places.x + oh) * params.places.y + ow;
            sum = sum + input[place * window + (channel * params.kernel.x + kh) * params.kernel.y + kw];
        }
    }
    output[i] = sum;
}
