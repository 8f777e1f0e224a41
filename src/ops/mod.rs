//! The primitives: what each means, its host kernel, its gradient and its device kernel.
//!
//! A new primitive is one file here, one kernel in `shaders/` (none if it is elementwise), and one line in [`PRIMITIVES`].

mod abs;
mod add;
mod and;
mod argmax;
mod attention;
mod attention_grad;
mod broadcast;
mod cast;
mod ceil;
mod concat;
mod cooperative;
mod cos;
mod cross_entropy;
mod cross_entropy_grad;
mod cumsum;
mod detach;
mod div;
mod dropout_mask;
pub mod elementwise;
pub mod elementwise_kernel;
pub mod ending;
mod equal;
mod erf;
mod exp;
mod floor;
mod fold;
mod fused;
mod gather;
mod gelu;
mod gelu_grad;
mod gelu_tanh;
mod gelu_tanh_grad;
pub mod gemm;
#[cfg(target_arch = "x86_64")]
mod gemm_avx512;
mod heads;
pub mod host;
mod is_nan;
mod layer_norm;
mod layer_norm_grad;
pub mod layout;
mod less;
mod less_equal;
mod linear_cross_entropy;
mod link;
mod log;
pub mod math;
mod matmul;
mod matmul_fused;
mod matmul_group;
mod max;
mod min;
mod modulo;
mod mul;
mod neg;
mod not;
mod or;
pub mod parallel;
mod pow;
mod prelude;
pub mod primitive;
mod product;
mod product_software;
mod reciprocal;
mod reduce;
mod reduce_max;
mod reduce_sum;
mod reshape;
mod rms_norm;
mod rms_norm_grad;
mod rotary;
mod round;
mod rows;
mod samples;
mod scatter_add;
mod select;
mod sigmoid;
mod sign;
mod silu;
mod silu_grad;
mod sin;
mod slice;
mod softmax;
mod softmax_grad;
mod sqrt;
mod sub;
mod tanh;
mod template;
mod transpose;
mod unfold;
mod unslice;
mod work;
mod xor;

pub use host::{RULES, eval, interpret};
pub use link::link;
pub use matmul_group::MOST as GROUP;
pub use primitive::{
    Binding, Cooperative, Cpu, CpuCall, Data, DataMut, Dispatch, Element, Elements, Fill, Gpu, GpuCall, GpuTraits,
    Primitive, Sample, Shader, Vjp, VjpCall,
};
pub use samples::draw;
pub use work::{Work, work};

/// Every primitive, by name.
pub static PRIMITIVES: &[Primitive] = &[
    abs::PRIMITIVE,
    add::PRIMITIVE,
    and::PRIMITIVE,
    argmax::PRIMITIVE,
    attention::PRIMITIVE,
    attention_grad::PRIMITIVE,
    broadcast::PRIMITIVE,
    cast::PRIMITIVE,
    ceil::PRIMITIVE,
    concat::PRIMITIVE,
    cos::PRIMITIVE,
    cross_entropy::PRIMITIVE,
    cross_entropy_grad::PRIMITIVE,
    cumsum::PRIMITIVE,
    detach::PRIMITIVE,
    div::PRIMITIVE,
    dropout_mask::PRIMITIVE,
    equal::PRIMITIVE,
    erf::PRIMITIVE,
    exp::PRIMITIVE,
    floor::PRIMITIVE,
    fold::PRIMITIVE,
    fused::PRIMITIVE,
    gather::PRIMITIVE,
    gelu::PRIMITIVE,
    gelu_grad::PRIMITIVE,
    gelu_tanh::PRIMITIVE,
    gelu_tanh_grad::PRIMITIVE,
    is_nan::PRIMITIVE,
    layer_norm::PRIMITIVE,
    layer_norm_grad::PRIMITIVE,
    less::PRIMITIVE,
    less_equal::PRIMITIVE,
    linear_cross_entropy::PRIMITIVE,
    log::PRIMITIVE,
    matmul::PRIMITIVE,
    matmul_fused::PRIMITIVE,
    matmul_group::PRIMITIVE,
    max::PRIMITIVE,
    min::PRIMITIVE,
    modulo::PRIMITIVE,
    mul::PRIMITIVE,
    neg::PRIMITIVE,
    not::PRIMITIVE,
    or::PRIMITIVE,
    pow::PRIMITIVE,
    reciprocal::PRIMITIVE,
    reduce_max::PRIMITIVE,
    reduce_sum::PRIMITIVE,
    reshape::PRIMITIVE,
    rms_norm::PRIMITIVE,
    rms_norm_grad::PRIMITIVE,
    rotary::PRIMITIVE,
    round::PRIMITIVE,
    scatter_add::PRIMITIVE,
    select::PRIMITIVE,
    sigmoid::PRIMITIVE,
    sign::PRIMITIVE,
    silu::PRIMITIVE,
    silu_grad::PRIMITIVE,
    sin::PRIMITIVE,
    slice::PRIMITIVE,
    softmax::PRIMITIVE,
    softmax_grad::PRIMITIVE,
    sqrt::PRIMITIVE,
    sub::PRIMITIVE,
    tanh::PRIMITIVE,
    transpose::PRIMITIVE,
    unfold::PRIMITIVE,
    unslice::PRIMITIVE,
    xor::PRIMITIVE,
];

/// The primitive of this name. The table is in order of names.
pub fn find(name: &str) -> Option<&'static Primitive> {
    PRIMITIVES.binary_search_by(|p| p.name.cmp(name)).ok().map(|i| &PRIMITIVES[i])
}

/// How many of a node's outputs hold results; the others are memory that its kernels work in.
pub fn results(op: &str, outputs: usize) -> usize {
    if op == linear_cross_entropy::PRIMITIVE.name { linear_cross_entropy::RESULTS } else { outputs }
}

/// Places of a window along each axis of images `(B, C, H, W)`, or why the window does not fit.
pub fn windows(shape: &[usize], attrs: &crate::ir::Attrs) -> Result<[usize; 2], String> {
    Ok(unfold::Windows::new(shape, attrs)?.out)
}

/// The dispatches that compute one node on a device, in order; none for an alias.
pub fn dispatches(op: &str, call: &GpuCall) -> Vec<Dispatch> {
    let primitive = find(op).unwrap_or_else(|| panic!("verified graphs hold known primitives only, not '{op}'"));
    match &primitive.gpu {
        Gpu::Elementwise(_) => {
            let program = elementwise::program_of(op, call.attrs, call.types_in.len(), &call.types_out[0]);
            vec![elementwise_kernel::dispatch(&program, call.types_in, call.types_out, call.traits)]
        }
        Gpu::Kernel(kernel) | Gpu::Tuned { kernel, .. } => kernel(call),
        Gpu::Alias => vec![],
    }
}

/// The kernels among which a device may choose for one node by measuring; none where there is one way alone. All of them give
/// the same bits.
pub fn candidates(op: &str, call: &GpuCall) -> Vec<&'static str> {
    match find(op).map(|p| &p.gpu) {
        Some(Gpu::Tuned { candidates, .. }) => candidates(call),
        _ => vec![],
    }
}

/// The input that a primitive reads only where it writes its first result, if it has such a one.
pub fn added_in_place(op: &str, inputs: usize, attrs: &crate::ir::Attrs) -> Option<usize> {
    match op {
        "matmul" | "matmul_fused" => matmul::Operands::of(inputs, attrs).added,
        "rms_norm_grad" => (inputs > 4).then_some(4),
        "layer_norm_grad" => (inputs > 5).then_some(5),
        _ => None,
    }
}

/// Whether a host kernel can read this input, of so many axes, as halves (see [`Data::Half`]). Products do it where they pack right
/// operands: elsewhere each would make a whole copy first.
pub fn unpacks_on_host(op: &str, input: usize, axes: usize) -> bool {
    match op {
        "matmul" | "matmul_fused" => input == 1 && gemm::packs_rights::<f32>(),
        "linear_cross_entropy" => unpacks(op, input, axes) && gemm::packs_rights::<f32>(),
        _ => unpacks(op, input, axes),
    }
}

/// Whether a device kernel can read this input, of so many axes, as packed halves (see [`GpuCall::packed`]).
pub fn unpacks(op: &str, input: usize, axes: usize) -> bool {
    match op {
        "matmul" | "matmul_fused" => input < 2,
        "gather" => input == 0,
        // Its weights; a bias has one axis.
        "linear_cross_entropy" => input >= 2 && axes == 2,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::PRIMITIVES;

    #[test]
    fn table_is_in_order_of_names() {
        assert!(PRIMITIVES.windows(2).all(|p| p[0].name < p[1].name));
    }
}
