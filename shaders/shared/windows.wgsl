// The parameters of windows of images.

struct Params {
    n: u32,
    width: u32,
    channels: u32,
    unused: u32,
    size: vec2<u32>,
    kernel: vec2<u32>,
    stride: vec2<u32>,
    dilation: vec2<u32>,
    pad: vec2<u32>,
    places: vec2<u32>,
}

@group(0) @binding(0) var<uniform> params: Params;
