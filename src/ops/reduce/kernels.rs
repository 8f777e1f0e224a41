//! What `reduce_sum`, `reduce_sum_square` and `reduce_max` share: the host loop and the two device kernels.

use crate::ops::engine::prelude::*;
use crate::ops::engine::rows::row_workgroup;

pub enum Kind {
    Sum,
    Max,
    SumSquare,
}

pub fn samples() -> Vec<Sample> {
    let ints = Sample::new(vec![(Type::i32([2, 5, 3]), Fill::Index(9))], Attrs::new());
    vec![Sample::normal(&[&[4, 300, 1]]), Sample::normal(&[&[2, 5, 3]]), Sample::normal(&[&[1, 70, 4]]), ints]
}

/// Folds `(outer, n, inner)` into `(outer, inner)`.
pub fn run<E: Copy + Send + Sync>(x: &[E], y: &mut [E], shape: &[usize], init: E, f: impl Fn(E, E) -> E + Sync) {
    run_on(x, y, shape, init, |v| v, f);
}

/// Folds what `of` makes of each element. Long sums are folded in parts, which keeps rounding errors small.
pub fn run_on<E: Copy + Send + Sync>(
    x: &[E],
    y: &mut [E],
    shape: &[usize],
    init: E,
    of: impl Fn(E) -> E + Sync,
    f: impl Fn(E, E) -> E + Sync,
) {
    const PART: usize = 128;
    let (n, inner) = (shape[1], shape[2]);
    if inner == 1 {
        let y = Shared::new(y);
        parallel::ranges(shape[0], parallel::rows_grain(n), |range| {
            for o in range {
                let row = &x[o * n..(o + 1) * n];
                let total = parallel::simd(|| {
                    row.chunks(16 * PART).fold(init, |total, part| {
                        let mut lanes = [init; 16];
                        let whole = part.chunks_exact(16);
                        let rest = whole.remainder();
                        whole.for_each(|c| lanes.iter_mut().zip(c).for_each(|(l, &v)| *l = f(*l, of(v))));
                        f(total, rest.iter().map(|&v| of(v)).chain(lanes).fold(init, &f))
                    })
                });
                // SAFETY: one task a row.
                unsafe { y.put(o, total) };
            }
        });
        return;
    }
    let y = Shared::new(y);
    const COLUMNS: usize = 256;
    let blocks = inner.div_ceil(COLUMNS);
    parallel::ranges(shape[0] * blocks, parallel::rows_grain(n * COLUMNS.min(inner)), |range| {
        for block in range {
            let (o, from) = (block / blocks, block % blocks * COLUMNS);
            let to = (from + COLUMNS).min(inner);
            // SAFETY: one task a block of columns.
            let out = unsafe { y.part(o * inner + from..o * inner + to) };
            out.fill(init);
            let mut part = [init; COLUMNS];
            let part = &mut part[..to - from];
            for chunk in x[o * n * inner..(o + 1) * n * inner].chunks(PART * inner) {
                parallel::simd(|| {
                    part.fill(init);
                    for row in chunk.chunks_exact(inner) {
                        part.iter_mut().zip(&row[from..to]).for_each(|(p, &v)| *p = f(*p, of(v)));
                    }
                    out.iter_mut().zip(&*part).for_each(|(y, &p)| *y = f(*y, p));
                });
            }
        }
    });
}

/// Rows go to one workgroup each, columns to one invocation each.
pub fn dispatch(c: &GpuCall, kind: Kind) -> Vec<Dispatch> {
    let [outer, n, inner] = c.types_in[0].shape[..] else { panic!("infer admits three axes only") };
    let mode = match kind {
        Kind::Sum => 0,
        Kind::Max => 1,
        Kind::SumSquare => 2,
    };
    let float = c.types_in[0].is_float() as u32;
    let bindings = vec![Binding::Input(0), Binding::Output(0)];
    if inner == 1 {
        let (workgroups, width) = grid(outer, 1, c.traits);
        return vec![Dispatch {
            shader: Shader {
                name: "reduce_rows",
                source: include_str!("../../../shaders/reduce/reduce_rows.wgsl").into(),
            },
            constants: vec![("SIZE", row_workgroup(n, c.traits) as f64)],
            bindings,
            params: vec![outer as u32, width, n as u32, mode, float, 0, 0, 0],
            workgroups,
        }];
    }
    let (workgroups, width) = grid(outer * inner, 64, c.traits);
    vec![Dispatch {
        shader: Shader {
            name: "reduce_columns",
            source: include_str!("../../../shaders/reduce/reduce_columns.wgsl").into(),
        },
        constants: vec![],
        bindings,
        params: vec![(outer * inner) as u32, width, n as u32, inner as u32, mode, float, 0, 0],
        workgroups,
    }]
}
