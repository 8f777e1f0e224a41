//! Turns pairs of elements of the rows of x `(B, H, S, D)` by angles whose cosines and sines broadcast to `(B, H, S, D)`, or to
//! `(B, H, S, D / 2)` with one angle for a pair: `(a, b)` becomes `(a cosₐ - b sinₐ, b cosᵦ + a sinᵦ)`. Pairs are i and i + D / 2, or
//! neighbours if `interleaved`. With `seq`, operand and result are stored `(B, S, H, D)`. With `adjoint` it is the transposed
//! map, which is the gradient: `(a cosₐ + b sinᵦ, b cosᵦ - a sinₐ)`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "rotary",
    attrs: &[flag("seq"), flag("interleaved"), flag("adjoint")],
    infer: |ins, attrs| match ins {
        [x, cos, sin] if x.is_float() && x.rank() == 4 && cos == sin && cos.is_float() && cos.rank() == 4 => {
            let [b, h, s, d] = extents(x, attrs);
            let fits = |i: usize, n: usize| cos.shape[i] == n || cos.shape[i] == 1;
            if d == 0 || d % 2 != 0 || !fits(0, b) || !fits(1, h) || !fits(2, s) || ![d, d / 2].contains(&cos.shape[3])
            {
                return Err(format!("angles {cos} do not fit {x}"));
            }
            Ok(vec![(*x).clone()])
        }
        _ => Err("takes heads of four axes, and cosines and sines alike of four axes".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        if c.wants[1] || c.wants[2] {
            let types = c.node.inputs.iter().map(|&v| c.b.ty(v).to_string()).collect::<Vec<_>>().join(", ");
            let why = "angles that depend on a parameter have no gradient in one operation".into();
            return Err(BuildError { op: "rotary".into(), types, at: format!(" at node '{}'", c.node.origin), why });
        }
        let attrs = c.node.attrs.clone().with("adjoint", Attr::Bool(!c.node.attrs.flag("adjoint")));
        let inputs = [c.g(), c.x(1), c.x(2)];
        Ok(vec![Some(c.b.emit("rotary", &inputs, attrs)?), None, None])
    }),
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let flags = |on: &[&str]| on.iter().fold(Attrs::new(), |a, name| a.with(name, Attr::Bool(true)));
        let of = |x: [usize; 4], angles: [usize; 4], on: &[&str]| {
            let angles = (Type::f32(angles), Fill::Frozen);
            Sample::new(vec![(Type::f32(x), Fill::Normal), angles.clone(), angles], flags(on))
        };
        vec![
            of([2, 3, 5, 6], [2, 1, 5, 6], &[]),
            of([2, 3, 5, 6], [1, 1, 5, 3], &[]),
            of([2, 5, 3, 8], [2, 1, 5, 8], &["seq"]),
            of([2, 5, 3, 8], [1, 3, 1, 4], &["seq", "adjoint"]),
            of([2, 3, 5, 6], [2, 1, 5, 3], &["interleaved"]),
            of([2, 5, 3, 6], [1, 1, 5, 6], &["interleaved", "adjoint", "seq"]),
        ]
    },
};

/// B, H, S and D.
fn extents(x: &Type, attrs: &Attrs) -> [usize; 4] {
    let s = &x.shape;
    if attrs.flag("seq") { [s[0], s[2], s[1], s[3]] } else { [s[0], s[1], s[2], s[3]] }
}

/// Strides of the angles over the axes of x as they are stored, but the last; and whether each element of a pair has its own.
fn strides(types: &[Type], attrs: &Attrs) -> ([usize; 3], bool) {
    let angles = &types[1].shape;
    let own = angles.strides();
    let along = |i: usize| if angles[i] == 1 { 0 } else { own[i] };
    let (outer, inner) = if attrs.flag("seq") { (2, 1) } else { (1, 2) };
    ([along(0), along(outer), along(inner)], angles[3] == types[0].shape[3])
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let ([per_example, per_outer, per_inner], both) = strides(c.types_in, c.attrs);
    let [_, outer, inner, d] = c.shape_in(0)[..] else { panic!("infer admits four axes only") };
    let (x, cos, sin) = (c.ins[0].float(), c.ins[1].float(), c.ins[2].float());
    let (interleaved, adjoint) = (c.attrs.flag("interleaved"), c.attrs.flag("adjoint"));
    let y = Shared::new(c.outs[0].float());
    // A task turns whole groups of inner rows.
    parallel::ranges(x.len() / (inner * d), parallel::rows_grain(inner * d), |range| {
        for group in range {
            let part = group * inner * d..(group + 1) * inner * d;
            let at = group / outer * per_example + group % outer * per_outer;
            // SAFETY: one task a group.
            let y = unsafe { y.part(part.clone()) };
            let (cos, sin) = (&cos[at..], &sin[at..]);
            parallel::simd_call(Rows { x: &x[part], y, cos, sin, step: per_inner, d, both, interleaved, adjoint });
        }
    });
}

/// Some rows, as a value that [`parallel::simd_call`] compiles for the processor at hand.
struct Rows<'a, T> {
    x: &'a [T],
    y: &'a mut [T],
    cos: &'a [T],
    sin: &'a [T],
    /// From the angles of one row to those of the next.
    step: usize,
    d: usize,
    both: bool,
    interleaved: bool,
    adjoint: bool,
}

impl<T: Real> pulp::NullaryFnOnce for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let half = self.d / 2;
        let sign = if self.adjoint { -T::one() } else { T::one() };
        for (r, (x, y)) in self.x.chunks_exact(self.d).zip(self.y.chunks_exact_mut(self.d)).enumerate() {
            let n = if self.both { self.d } else { half };
            let (cos, sin) = (&self.cos[r * self.step..][..n], &self.sin[r * self.step..][..n]);
            if self.interleaved {
                for (p, (y, x)) in y.chunks_exact_mut(2).zip(x.chunks_exact(2)).enumerate() {
                    let (a, b) = if self.both { (2 * p, 2 * p + 1) } else { (p, p) };
                    let (first, second) = if self.adjoint { (b, a) } else { (a, b) };
                    y[0] = x[0] * cos[a] - sign * x[1] * sin[first];
                    y[1] = x[1] * cos[b] + sign * x[0] * sin[second];
                }
                continue;
            }
            let ((a, b), (ya, yb)) = (x.split_at(half), y.split_at_mut(half));
            let (b, yb) = (&b[..half], &mut yb[..half]);
            let (cos_a, cos_b) = (&cos[..half], &cos[n - half..][..half]);
            let (mut sin_a, mut sin_b) = (&sin[..half], &sin[n - half..][..half]);
            if self.adjoint {
                (sin_a, sin_b) = (sin_b, sin_a);
            }
            for i in 0..half {
                ya[i] = a[i] * cos_a[i] - sign * b[i] * sin_a[i];
                yb[i] = b[i] * cos_b[i] + sign * a[i] * sin_b[i];
            }
        }
    }
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let (at, both) = strides(c.types_in, c.attrs);
    let x = &c.types_in[0].shape;
    let pairs = x.elements() / 2;
    let (workgroups, width) = grid(pairs, 64, c.traits);
    let mut params: Vec<u32> =
        [pairs, width as usize, x[1], x[2], x[3], at[0], at[1], at[2]].map(|n| n as u32).to_vec();
    params.extend([both, c.attrs.flag("interleaved"), c.attrs.flag("adjoint"), false].map(u32::from));
    vec![Dispatch {
        shader: Shader { name: "rotary", source: include_str!("../../../shaders/attention/rotary.wgsl").into() },
        constants: vec![],
        bindings: vec![Binding::Input(0), Binding::Input(1), Binding::Input(2), Binding::Output(0)],
        params,
        workgroups,
    }]
}
