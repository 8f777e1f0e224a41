// What kernels share in which one invocation multiplies eight rows at once.

// Adds the products of four elements of each of eight rows with four of another: rows 0 to 3 to `low`, 4 to 7 to `high`.
fn add_products(
    low: ptr<function, vec4<f32>>,
    high: ptr<function, vec4<f32>>,
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
    a4: vec4<f32>,
    a5: vec4<f32>,
    a6: vec4<f32>,
    a7: vec4<f32>,
    x: vec4<f32>,
) {
    var l = *low;
    var h = *high;
    l = fma(vec4<f32>(a0.x, a1.x, a2.x, a3.x), vec4<f32>(x.x), l);
    h = fma(vec4<f32>(a4.x, a5.x, a6.x, a7.x), vec4<f32>(x.x), h);
    l = fma(vec4<f32>(a0.y, a1.y, a2.y, a3.y), vec4<f32>(x.y), l);
    h = fma(vec4<f32>(a4.y, a5.y, a6.y, a7.y), vec4<f32>(x.y), h);
    l = fma(vec4<f32>(a0.z, a1.z, a2.z, a3.z), vec4<f32>(x.z), l);
    h = fma(vec4<f32>(a4.z, a5.z, a6.z, a7.z), vec4<f32>(x.z), h);
    l = fma(vec4<f32>(a0.w, a1.w, a2.w, a3.w), vec4<f32>(x.w), l);
    h = fma(vec4<f32>(a4.w, a5.w, a6.w, a7.w), vec4<f32>(x.w), h);
    *low = l;
    *high = h;
}
