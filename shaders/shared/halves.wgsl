// Numbers of 16 bits. A word holds two of them, the first in its lower bits.

// The one of this number, of the two in a word.
fn unpack_half(word: u32, i: u32) -> f32 {
    return unpack2x16float(word)[i % 2u];
}

fn unpack_halves(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

// The nearest halves, ties to even, as f32; infinite beyond their range. In whole numbers, since adapters round conversions to
// f16 as they like.
fn nearest_halves(v: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(v);
    let sign = bits & vec4<u32>(0x80000000u);
    let size = bits & vec4<u32>(0x7fffffffu);
    let even = (size >> vec4<u32>(13u)) & vec4<u32>(1u);
    var near = (size + vec4<u32>(0xfffu) + even) & vec4<u32>(0xffffe000u);
    near = select(near, vec4<u32>(0x7f800000u), near >= vec4<u32>(0x47800000u));
    // Below the smallest normal half, they are the multiples of 2^-24.
    let small = bitcast<vec4<u32>>(round(bitcast<vec4<f32>>(size) * 16777216.0) * 5.9604644775390625e-8);
    near = select(near, small, size < vec4<u32>(0x38800000u));
    near = select(near, size, size > vec4<u32>(0x7f800000u));
    return bitcast<vec4<f32>>(near | sign);
}
