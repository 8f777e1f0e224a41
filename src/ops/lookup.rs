//! Primitives by name, and what a device asks of them.

use super::engine::primitive::{self, Dispatch, Gpu, GpuCall, Primitive, Results, Tiled, Work};
use super::{TABLES, elementwise};
use crate::ir::{Attrs, Type};
use std::sync::LazyLock;

/// Every primitive, in order of names.
pub static PRIMITIVES: LazyLock<Vec<&'static Primitive>> = LazyLock::new(|| primitive::sorted(TABLES));

/// The primitive of this name.
pub fn find(name: &str) -> Option<&'static Primitive> {
    primitive::find(&PRIMITIVES, name)
}

/// Whether nodes of a primitive may have an attribute of this name.
pub fn takes(op: &str, attr: &str) -> bool {
    find(op).is_some_and(|p| p.attrs.iter().any(|a| a.name == attr))
}

/// Whether each result's elements depend on the operands' elements at the same place alone, as a program that
/// [`elementwise::program_of`] gives.
pub fn is_elementwise(op: &str) -> bool {
    op == "fused" || find(op).is_some_and(|p| matches!(p.gpu, Gpu::Elementwise(_)))
}

/// How many of a node's outputs hold results; the others are memory that its kernels work in.
pub fn results(op: &str, outputs: usize) -> usize {
    match find(op).map(|p| p.results) {
        Some(Results::First(n)) => n,
        _ => outputs,
    }
}

/// Places of a primitive's window along each axis of images `(B, C, H, W)`, or why the window does not fit.
pub fn windows(op: &str, shape: &[usize], attrs: &Attrs) -> Result<[usize; 2], String> {
    let windows = find(op).and_then(|p| p.windows);
    windows.unwrap_or_else(|| panic!("'{op}' has no windows"))(shape, attrs)
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

/// The input that a node reads only where it writes its first result, if it has such a one.
pub fn added_in_place(op: &str, inputs: usize, attrs: &Attrs) -> Option<usize> {
    find(op).and_then(|p| (p.accumulates)(inputs, attrs))
}

/// Whether a host kernel can read this input, of so many axes, as halves.
pub fn unpacks_on_host(op: &str, input: usize, axes: usize) -> bool {
    find(op).is_some_and(|p| (p.halves.host)(input, axes))
}

/// Whether a device kernel can read this input, of so many axes, as packed halves.
pub fn unpacks(op: &str, input: usize, axes: usize) -> bool {
    find(op).is_some_and(|p| (p.halves.device)(input, axes))
}

/// The right operands of a node that the host can read in tiles.
pub fn tiles(op: &str, types_in: &[Type], attrs: &Attrs) -> Vec<Tiled> {
    find(op).map_or(vec![], |p| (p.halves.tiles)(types_in, attrs))
}

/// How much arithmetic and traffic a node is, for reports of speed.
pub fn work(op: &str, attrs: &Attrs, types_in: &[Type], types_out: &[Type]) -> Work {
    find(op).map_or(Work::default(), |p| (p.work)(types_in, types_out, attrs))
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
