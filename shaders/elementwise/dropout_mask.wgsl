// keep (1 / (1 - p)) with probability 1 - p, else 0: a hash of seed, key and index, the same on every device.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    n: u32,
    width: u32,
    key: u32,
    threshold: u32,
    keep: f32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> seed: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

// The 32-bit finaliser of MurmurHash3.
fn mix_bits(x: u32) -> u32 {
    var h = x;
    h = h ^ (h >> 16u);
    h = h * 0x85ebca6bu;
    h = h ^ (h >> 13u);
    h = h * 0xc2b2ae35u;
    return h ^ (h >> 16u);
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.n) {
        return;
    }
    let stream = mix_bits(seed[0] ^ mix_bits(params.key));
    output[i] = select(params.keep, 0.0, mix_bits(stream ^ mix_bits(i)) < params.threshold);
}
