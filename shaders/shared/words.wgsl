// Words that are floats or integers.

// Their sum (mode 0) or maximum (mode 1).
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
