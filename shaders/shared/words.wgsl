// Words that are floats or integers.

// What is joined: the word, or (mode 2) the square of a float.
fn joined(word: u32, mode: u32) -> u32 {
    let x = bitcast<f32>(word);
    return select(word, bitcast<u32>(x * x), mode == 2u);
}

// Their sum (modes 0 and 2) or maximum (mode 1).
fn join(a: u32, b: u32, mode: u32, is_float: u32) -> u32 {
    if (is_float != 0u) {
        let x = bitcast<f32>(a);
        let y = bitcast<f32>(b);
        return bitcast<u32>(select(x + y, max(x, y), mode == 1u));
    }
    let x = bitcast<i32>(a);
    let y = bitcast<i32>(b);
    return bitcast<u32>(select(x + y, max(x, y), mode == 1u));
}
