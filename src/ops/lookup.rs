//! Primitives by name, and what a device asks of them.

use super::engine::primitive::{Dispatch, Gpu, GpuCall, Primitive};
use super::{TABLES, elementwise, layout, loss, matmul};
use crate::ir::Attrs;
use std::sync::LazyLock;

/// Every primitive, in order of names.
pub static PRIMITIVES: LazyLock<Vec<&'static Primitive>> = LazyLock::new(|| {
    let mut all: Vec<&Primitive> = TABLES.iter().copied().flatten().collect();
    all.sort_by_key(|p| p.name);
    all
});

/// The primitive of this name.
pub fn find(name: &str) -> Option<&'static Primitive> {
    PRIMITIVES.binary_search_by(|p| p.name.cmp(name)).ok().map(|i| PRIMITIVES[i])
}

/// How many of a node's outputs hold results; the others are memory that its kernels work in.
pub fn results(op: &str, outputs: usize) -> usize {
    if op == loss::linear_cross_entropy::PRIMITIVE.name { loss::linear_cross_entropy::RESULTS } else { outputs }
}

/// Places of a window along each axis of images `(B, C, H, W)`, or why the window does not fit.
pub fn windows(shape: &[usize], attrs: &Attrs) -> Result<[usize; 2], String> {
    Ok(layout::unfold::Windows::new(shape, attrs)?.out)
}

/// The dispatches that compute one node on a device, in order; none for an alias.
pub fn dispatches(op: &str, call: &GpuCall) -> Vec<Dispatch> {
    let primitive = find(op).unwrap_or_else(|| panic!("verified graphs hold known primitives only, not '{op}'"));
    match &primitive.gpu {
        Gpu::Elementwise(_) => {
            let program = elementwise::program_of(op, call.attrs, call.types_in.len(), &call.types_out[0]);
            vec![elementwise::kernel::dispatch(&program, call.types_in, call.types_out, call.traits)]
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
pub fn added_in_place(op: &str, inputs: usize, attrs: &Attrs) -> Option<usize> {
    match op {
        "matmul" | "matmul_fused" => matmul::plain::Operands::of(inputs, attrs).added,
        "rms_norm_grad" => (inputs > 4).then_some(4),
        "layer_norm_grad" => (inputs > 5).then_some(5),
        _ => None,
    }
}

/// Whether a host kernel can read this input, of so many axes, as halves (see [`Data::Half`]). Products do it where they pack right
/// operands: elsewhere each would make a whole copy first.
pub fn unpacks_on_host(op: &str, input: usize, axes: usize) -> bool {
    match op {
        "matmul" | "matmul_fused" => input == 1 && matmul::multiply::packs_rights::<f32>(),
        "linear_cross_entropy" => unpacks(op, input, axes) && matmul::multiply::packs_rights::<f32>(),
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
    use super::{PRIMITIVES, TABLES};

    #[test]
    fn tables_are_in_order_of_names_and_share_none() {
        assert!(TABLES.iter().all(|table| table.windows(2).all(|p| p[0].name < p[1].name)));
        assert!(PRIMITIVES.windows(2).all(|p| p[0].name < p[1].name));
    }
}
