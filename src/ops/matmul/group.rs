//! Products of one left operand: x `(M, K)` with each of some `(K, N)` to as many `(M, N)`; `trans_a` stores x as `(K, M)`, `trans_b`
//! the others as `(N, K)`, and `trans_y` the results as `(N, M)`. They are multiplied by `scale`, if there is one; `group` says how
//! many they are. A device kernel reads x once for all of them: it multiplies by the others side by side.

use super::multiply::{Matrix, Target, gemm};
use super::plain::{operand, work};
use super::product;
use crate::ops::engine::prelude::*;

/// The most products: with x they are seven buffers, of the eight that every adapter has.
pub const MOST: usize = 3;

pub const PRIMITIVE: Primitive = Primitive {
    name: "matmul_group",
    attrs: &[
        needs("group", AttrKind::Int),
        flag("trans_a"),
        flag("trans_b"),
        flag("trans_y"),
        flag("halves"),
        may("scale", AttrKind::Float),
    ],
    infer,
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Tuned { kernel: product::dispatches, candidates: product::candidates },
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: work,
    samples: || {
        let of = |x: [usize; 2], w: [usize; 2], count: usize, flags: &[&str]| {
            let shapes: Vec<&[usize]> = std::iter::once(&x[..]).chain((0..count).map(|_| &w[..])).collect();
            let attrs = Attrs::new().with("group", Attr::Int(count as i64));
            Sample::normal(&shapes).with(flags.iter().fold(attrs, |a, f| a.with(f, Attr::Bool(true))))
        };
        let scaled = |mut s: Sample| {
            s.attrs = s.attrs.with("scale", Attr::Float(2.5));
            s
        };
        vec![
            of([37, 12], [8, 12], 3, &["trans_b"]),
            of([70, 33], [33, 4], 2, &[]),
            scaled(of([64, 64], [16, 64], 3, &["trans_b"])),
            of([40, 36], [40, 8], 2, &["trans_a", "trans_y"]),
            of([300, 48], [300, 4], 3, &["trans_a", "trans_y"]),
            // K in parts.
            scaled(of([12, 1100], [1100, 8], 2, &[])),
            of([1100, 12], [1100, 4], 3, &["trans_a", "trans_y"]),
        ]
    },
};

/// How many products a node has, if it is a group of them.
pub fn count(attrs: &Attrs) -> Option<usize> {
    attrs.get_int("group").map(|n| n as usize)
}

fn infer(ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    let (Some(n), [x, w, more @ ..]) = (count(attrs), ins) else {
        return Err("takes operands, and their number".into());
    };
    if !(1..=MOST).contains(&n) || more.len() + 1 != n || more.iter().any(|other| other != w) {
        return Err(format!("takes a left operand and {n} right ones alike, at most {MOST}"));
    }
    let (&[x0, x1], &[w0, w1]) = (&x.shape[..], &w.shape[..]) else { return Err("takes operands of two axes".into()) };
    let (m, k) = if attrs.flag("trans_a") { (x1, x0) } else { (x0, x1) };
    let (inner, columns) = if attrs.flag("trans_b") { (w1, w0) } else { (w0, w1) };
    if inner != k || !x.is_float() || !w.is_float() || !columns.is_multiple_of(4) {
        return Err(format!("{x} and {w} have no product of columns in fours"));
    }
    let y = if attrs.flag("trans_y") { [columns, m] } else { [m, columns] };
    Ok(vec![Type::f32(y); n])
}

/// A group as device kernels see it: one product whose right operands, and whose results, stand side by side.
#[derive(Clone, Copy)]
pub struct Group {
    pub count: usize,
    trans_b: bool,
    pub trans_y: bool,
    scale: Option<f32>,
}

impl Group {
    pub fn of(attrs: &Attrs) -> Option<Group> {
        let scale = attrs.get_float("scale").map(|s| s as f32);
        count(attrs).map(|count| Group { count, trans_b: attrs.flag("trans_b"), trans_y: attrs.flag("trans_y"), scale })
    }

    /// What kernels call right operand `i`.
    pub fn right(i: usize) -> &'static str {
        ["x0", "x1", "x2"][i]
    }

    /// A function that reads four neighbouring elements of the right operands side by side, by those that read one of them.
    pub fn load(&self) -> String {
        let count = self.count;
        let (which, at) = match self.trans_b {
            true => ("i / (params.n / COUNT * params.k)".to_string(), "i % (params.n / COUNT * params.k)".to_string()),
            false => {
                let each = "(params.n / COUNT)";
                (format!("i % params.n / {each}"), format!("i / params.n * {each} + i % params.n % {each}"))
            }
        };
        let read = |i: usize| format!("        return load_{}(at, count);\n", Group::right(i));
        let cases: String = (0..count - 1).map(|i| format!("    if (which == {i}u) {{\n{}    }}\n", read(i))).collect();
        format!(
            "const COUNT: u32 = {count}u;\n\nfn load_x(i: u32, count: u32) -> vec4<f32> {{\n    let which = {which};\n    \
             let at = {at};\n{cases}{}}}\n\n",
            read(count - 1)
        )
    }

    /// The body of a kernel's `keep`: its results are called `y`, `y1` and so on. `row` is how many elements (or vec4s) all results have
    /// in a row, `rows` how many rows there are.
    pub fn keep(&self, vectors: bool, [row, rows]: [&str; 2]) -> String {
        let scale = self.scale.map_or(String::new(), |s| format!(" * bitcast<f32>({}u)", s.to_bits()));
        let mut text = format!(
            "    let value = sum{scale};\n    let each = {row} / {}u;\n    let which = i % {row} / each;\n    \
             let column = i % {row} % each;\n",
            self.count
        );
        for w in 0..self.count {
            let y = if w == 0 { "y".to_string() } else { format!("y{w}") };
            let stores = match (self.trans_y, vectors) {
                (false, _) => format!("        {y}[i / {row} * each + column] = value;\n"),
                (true, false) => format!("        {y}[column * {rows} + i / {row}] = value;\n"),
                (true, true) => (0..4)
                    .map(|o| format!("        {y}[(column * 4u + {o}u) * {rows} + i / {row}] = value[{o}];\n"))
                    .collect(),
            };
            text += &format!("    if (which == {w}u) {{\n{stores}    }}\n");
        }
        text
    }
}

/// One after the other: packing and blocks of a host's products leave nothing to gain by doing them together.
fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let (x, w) = (&c.types_in[0].shape, &c.types_in[1].shape);
    let strides = |row: usize, trans: bool| if trans { (1, row) } else { (row, 1) };
    let (m, k) = if c.attrs.flag("trans_a") { (x[1], x[0]) } else { (x[0], x[1]) };
    let n = w.elements() / k.max(1);
    let (a, b) = (strides(x[1], c.attrs.flag("trans_a")), strides(w[1], c.attrs.flag("trans_b")));
    let halves = c.attrs.flag("halves");
    let left = operand(c.ins[0].elements(), halves);
    let left = left.matrix(0..m * k, a);
    for (w, y) in c.ins[1..].iter().zip(c.outs.iter_mut()) {
        let right = operand(w.elements(), halves);
        let right = right.matrix(0..k * n, b);
        let y = y.float();
        let out = Shared::new(y);
        let target = |row: usize| Target { data: &out, at: 0, row };
        let turned = [&right, &left].map(|m| Matrix { row: m.col, col: m.row, ..*m });
        let threads = m * n * k >= 64 * 64 * 64;
        match c.attrs.flag("trans_y") {
            // SAFETY: nothing else uses the result.
            false => unsafe { gemm([m, n, k], left, right, target(n), false, threads) },
            // SAFETY: as above.
            true => unsafe { gemm([n, m, k], turned[0], turned[1], target(m), false, threads) },
        }
        if let Some(scale) = c.attrs.get_float("scale").map(T::of) {
            y.iter_mut().for_each(|y| *y *= scale);
        }
    }
}
