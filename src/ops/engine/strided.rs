//! Copies between strided layouts: what transpose, broadcast, slice, unslice and concat are on a device.

use super::parallel::{self, Shared};
use super::primitive::{Binding, Data, DataMut, Dispatch, GpuTraits, Shader};
use crate::ir::Axes;
use smallvec::SmallVec;
use std::borrow::Cow;

/// The most axes a device kernel indexes, after neighbouring axes are merged.
pub const MAX_AXES: usize = 8;

/// Merges neighbouring axes wherever every stride list steps through them as through one, and drops axes of extent 1.
/// At least one axis remains. Negative strides, cast, come out right: products wrap.
pub fn collapse(shape: &[usize], strides: &[Axes]) -> (Axes, SmallVec<[Axes; 8]>) {
    let mut dims = Axes::new();
    let mut out: SmallVec<[Axes; 8]> = strides.iter().map(|_| Axes::new()).collect();
    for d in (0..shape.len()).filter(|&d| shape[d] != 1) {
        let last = dims.len().wrapping_sub(1);
        let through = |(s, o): (&Axes, &Axes)| o[last] == s[d].wrapping_mul(shape[d]);
        if !dims.is_empty() && strides.iter().zip(&out).all(through) {
            dims[last] *= shape[d];
            strides.iter().zip(&mut out).for_each(|(s, o)| o[last] = s[d]);
        } else {
            dims.push(shape[d]);
            strides.iter().zip(&mut out).for_each(|(s, o)| o.push(s[d]));
        }
    }
    if dims.is_empty() {
        dims.push(1);
        out.iter_mut().for_each(|o| o.push(0));
    }
    (dims, out)
}

/// Strides that may be negative.
pub type Strides = SmallVec<[isize; 8]>;

/// `out[dst_base + Σ cᵢ dstᵢ] = in[src_base + Σ cᵢ srcᵢ]` for every index `c` of `shape`. Strides are in elements;
/// a source stride may be negative.
#[derive(Clone, Debug)]
pub struct Copy {
    pub shape: Axes,
    pub src_base: usize,
    pub src: Strides,
    pub dst_base: usize,
    pub dst: Axes,
}

impl Copy {
    /// From a whole row-major tensor with the given source strides to a whole row-major tensor of `shape`.
    pub fn gather(shape: &[usize], src_base: usize, src: Strides) -> Copy {
        Copy { shape: shape.into(), src_base, src, dst_base: 0, dst: crate::ir::strides(shape) }
    }

    fn collapsed(&self) -> Copy {
        let lists = [self.src.iter().map(|&s| s as usize).collect(), self.dst.clone()];
        let (shape, mut lists) = collapse(&self.shape, &lists);
        let dst = lists.pop().unwrap_or_default();
        let src = lists.pop().unwrap_or_default().into_iter().map(|s| s as isize).collect();
        Copy { shape, src_base: self.src_base, src, dst_base: self.dst_base, dst }
    }

    /// Copies on the host.
    pub fn run<T: super::math::Real>(&self, from: Data<T>, to: &mut DataMut<T>) {
        match (from, to) {
            (Data::Float(a), DataMut::Float(b)) => self.run_slices(a, b),
            (Data::Int(a), DataMut::Int(b)) => self.run_slices(a, b),
            _ => panic!("infer gives a copy the type of its source"),
        }
    }

    fn run_slices<T: std::marker::Copy + Send + Sync>(&self, from: &[T], to: &mut [T]) {
        if self.shape.contains(&0) {
            return;
        }
        let c = self.collapsed();
        let rank = c.shape.len();
        let (inner, outer) = (c.shape[rank - 1], &c.shape[..rank - 1]);
        let (si, di) = (c.src[rank - 1], c.dst[rank - 1]);
        let rows: usize = outer.iter().product();
        let to = Shared::new(to);
        parallel::ranges(rows, parallel::rows_grain(inner), |range| {
            for row in range {
                let (mut s, mut d, mut rest) = (c.src_base as isize, c.dst_base, row);
                for axis in (0..rank - 1).rev() {
                    let i = rest % outer[axis];
                    rest /= outer[axis];
                    s += i as isize * c.src[axis];
                    d += i * c.dst[axis];
                }
                // SAFETY: a copy writes each element of its result at most once, so no two rows share one.
                unsafe {
                    match (si, di) {
                        (1, 1) => to.part(d..d + inner).copy_from_slice(&from[s as usize..s as usize + inner]),
                        (0, 1) => to.part(d..d + inner).fill(from[s as usize]),
                        _ => (0..inner).for_each(|i| to.put(d + i * di, from[(s + i as isize * si) as usize])),
                    }
                }
            }
        });
    }

    /// The dispatch that copies input `from` to output 0 on a device.
    pub fn dispatch(&self, from: usize, traits: GpuTraits) -> Dispatch {
        let c = self.collapsed();
        assert!(c.shape.len() <= MAX_AXES, "layouts of more than {MAX_AXES} axes are refused by infer");
        let n: usize = c.shape.iter().product();
        let (workgroups, width) = grid(n, 256, traits);
        let mut params = vec![n as u32, width, c.src_base as u32, c.dst_base as u32];
        params.extend(padded(c.shape.iter().map(|&d| d as u32), 1));
        params.extend(padded(c.src.iter().map(|&s| s as i32 as u32), 0));
        params.extend(padded(c.dst.iter().map(|&s| s as u32), 0));
        Dispatch {
            shader: COPY,
            constants: vec![],
            bindings: vec![Binding::Input(from), Binding::Output(0)],
            params,
            workgroups,
        }
    }
}

pub const COPY: Shader =
    Shader { name: "copy", source: Cow::Borrowed(include_str!("../../../shaders/layout/copy.wgsl")) };

/// Eight words, front to back with the innermost axis last, so that kernels index axes from the end.
pub fn padded(words: impl ExactSizeIterator<Item = u32>, fill: u32) -> Vec<u32> {
    let mut out = vec![fill; MAX_AXES - words.len()];
    out.extend(words);
    out
}

/// A grid of `size`-wide workgroups for `n` invocations, and how many invocations one row of the grid holds: rows are as
/// wide as the adapter allows, so that invocation `x + y * width` is unique.
pub fn grid(n: usize, size: usize, traits: GpuTraits) -> ([u32; 3], u32) {
    let groups = n.div_ceil(size).max(1);
    let wide = groups.min(traits.max_workgroups as usize);
    ([wide as u32, groups.div_ceil(wide) as u32, 1], (wide * size) as u32)
}
