//! `(.., M, K) · (.., K, N)` to `(.., M, N)` with equal batch axes; `trans_a` stores the first as `(.., K, M)`, `trans_b` the
//! second as `(.., N, K)`.

use super::gemm::{Matrix, Target, gemm};
use super::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "matmul",
    infer: |ins, attrs| {
        let [a, b] = ins else { return Err("takes two operands".into()) };
        let rank = a.rank();
        if rank < 2 || b.rank() != rank || a.shape[..rank - 2] != b.shape[..rank - 2] || !a.is_float() || !b.is_float()
        {
            return Err("takes two float operands of two or more axes with equal batch axes".into());
        }
        let d = dims(a, b, attrs);
        let inner = b.shape[if attrs.flag("trans_b") { rank - 1 } else { rank - 2 }];
        if inner != d.k {
            return Err(format!("inner extents differ: {} and {inner}", d.k));
        }
        Ok(vec![Type::f32([&a.shape[..rank - 2], &[d.m, d.n]].concat())])
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(gpu),
    samples: || {
        let of = |a: &[usize], b: &[usize], ta, tb| Sample::normal(&[a, b]).with(flags(ta, tb));
        vec![
            of(&[5, 7], &[7, 3], false, false),
            of(&[7, 5], &[7, 3], true, false),
            of(&[5, 7], &[3, 7], false, true),
            of(&[7, 5], &[3, 7], true, true),
            of(&[2, 3, 5, 4], &[2, 3, 4, 6], false, false),
            of(&[2, 3, 5, 4], &[2, 3, 6, 4], false, true),
            of(&[70, 33], &[33, 130], false, false),
            of(&[64, 128], &[64, 128], false, true),
            of(&[64, 96], &[64, 128], true, false),
            of(&[13, 36], &[36, 140], false, false),
            of(&[3, 9, 8], &[3, 8, 12], false, false),
        ]
    },
};

fn flags(trans_a: bool, trans_b: bool) -> Attrs {
    Attrs::new().with("trans_a", Attr::Bool(trans_a)).with("trans_b", Attr::Bool(trans_b))
}

/// Extents of a product, and the strides of its operands' rows and columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: (usize, usize),
    pub b: (usize, usize),
}

pub fn dims(a: &Type, b: &Type, attrs: &Attrs) -> Dims {
    let rank = a.rank();
    let (ar, ac) = (a.shape[rank - 2], a.shape[rank - 1]);
    let (br, bc) = (b.shape[rank - 2], b.shape[rank - 1]);
    let (m, k, a_strides) = if attrs.flag("trans_a") { (ac, ar, (1, ac)) } else { (ar, ac, (ac, 1)) };
    let (n, b_strides) = if attrs.flag("trans_b") { (br, (1, bc)) } else { (bc, (bc, 1)) };
    Dims { batch: a.shape[..rank - 2].iter().product(), m, n, k, a: a_strides, b: b_strides }
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let d = dims(&c.types_in[0], &c.types_in[1], c.attrs);
    let (a, b, y) = (c.ins[0].float(), c.ins[1].float(), Shared::new(c.outs[0].float()));
    let product = |i: usize, threads: bool| {
        let a = Matrix::new(&a[i * d.m * d.k..][..d.m * d.k], d.a.0, d.a.1);
        let b = Matrix::new(&b[i * d.k * d.n..][..d.k * d.n], d.b.0, d.b.1);
        let y = Target { data: &y, at: i * d.m * d.n, row: d.n };
        // SAFETY: one task a batch entry.
        unsafe { gemm([d.m, d.n, d.k], a, b, y, false, threads) };
    };
    if d.batch >= rayon::current_num_threads() && d.batch > 1 {
        let grain = parallel::GRAIN * 8 / (d.m * d.n * d.k).max(1);
        parallel::ranges(d.batch, grain.max(1), |range| range.for_each(|i| product(i, false)));
    } else {
        let threads = d.m * d.n * d.k >= 64 * 64 * 64;
        (0..d.batch).for_each(|i| product(i, threads));
    }
}

/// With `Y = A B`: `dA = G Bᵀ`, `dB = Aᵀ G`; each stored as its operand is.
fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (ta, tb) = (c.node.attrs.flag("trans_a"), c.node.attrs.flag("trans_b"));
    let (a, b, g) = (c.x(0), c.x(1), c.g());
    let da = match (c.wants[0], ta) {
        (false, _) => None,
        (true, false) => Some(c.b.matmul(g, b, false, !tb)?),
        (true, true) => Some(c.b.matmul(b, g, tb, true)?),
    };
    let db = match (c.wants[1], tb) {
        (false, _) => None,
        (true, false) => Some(c.b.matmul(a, g, !ta, false)?),
        (true, true) => Some(c.b.matmul(g, a, true, ta)?),
    };
    Ok(vec![da, db])
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let d = dims(&c.types_in[0], &c.types_in[1], c.attrs);
    vec![dispatch(d, [Binding::Input(0), Binding::Input(1), Binding::Output(0)], c.traits)]
}

/// The dispatch of one product; `bindings` are its two operands and its result.
pub fn dispatch(d: Dims, bindings: [Binding; 3], traits: GpuTraits) -> Dispatch {
    let words = |x: usize| x as u32;
    let mut params = vec![words(d.m), words(d.n), words(d.k), words(d.batch)];
    params.extend([d.a.0, d.a.1, d.b.0, d.b.1].map(words));
    let depth = d.batch.min(traits.max_workgroups as usize);
    let by_rows = d.a.1 == 1 && d.b.1 == 1 && d.k.is_multiple_of(4) && d.n.is_multiple_of(4);
    let (name, source, tile_m, tile_n) = if traits.software && by_rows {
        ("matmul_rows", include_str!("../../shaders/matmul_rows.wgsl"), 8, 128)
    } else if traits.software {
        ("matmul_direct", include_str!("../../shaders/matmul_direct.wgsl"), 8, 512)
    } else {
        ("matmul_tiled", include_str!("../../shaders/matmul_tiled.wgsl"), 64, 64)
    };
    Dispatch {
        shader: Shader { name, source: source.into() },
        constants: vec![],
        bindings: bindings.to_vec(),
        params,
        workgroups: [words(d.n.div_ceil(tile_n)), words(d.m.div_ceil(tile_m)), words(depth)],
    }
}
