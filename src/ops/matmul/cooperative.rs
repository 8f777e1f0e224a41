//! The kernel of matmul in cooperative matrices: operands rounded to f16, sums in f32. For products of `halves` on adapters that
//! have such matrices.

use super::ending::KernelEnding;
use super::gemm::Gemm;
use super::storage::{FIRST_PART, SECOND, Stored, TRANSPOSED};
use crate::ops::engine::assemble;
use crate::ops::engine::prelude::*;
use crate::ops::engine::primitive::Cooperative;

/// How a workgroup divides its work: `groups` subgroups down and along, `each` matrices down and along for each of them, `bk`
/// steps of k at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile {
    pub name: &'static str,
    groups: [usize; 2],
    each: [usize; 2],
    bk: usize,
}

/// Every tile, the larger ones first.
static TILES: &[Tile] = &[
    Tile { name: "cooperative 2x2 of 4x4", groups: [2, 2], each: [4, 4], bk: 32 },
    Tile { name: "cooperative 2x2 of 2x2", groups: [2, 2], each: [2, 2], bk: 32 },
    Tile { name: "cooperative 1x1 of 4x4", groups: [1, 1], each: [4, 4], bk: 32 },
    Tile { name: "cooperative 1x1 of 2x2", groups: [1, 1], each: [2, 2], bk: 32 },
    Tile { name: "cooperative 1x1 of 4x1", groups: [1, 1], each: [4, 1], bk: 32 },
    Tile { name: "cooperative 1x1 of 1x4", groups: [1, 1], each: [1, 4], bk: 32 },
];

impl Tile {
    /// Rows and columns of results.
    pub fn extents(&self, c: Cooperative) -> [usize; 2] {
        [0, 1].map(|i| self.groups[i] * self.each[i] * c.size as usize)
    }

    fn invocations(&self, c: Cooperative) -> usize {
        self.groups[0] * self.groups[1] * c.width as usize
    }

    /// Elements of workgroup memory for each operand, and for results at an edge; the right operands of both terms share theirs.
    fn staged(&self, c: Cooperative, [turned_a, turned_x, turned_x2]: [bool; 3]) -> [usize; 3] {
        let [bm, bn] = self.extents(c);
        let size = |rows: usize, cols: usize| rows * (cols + 8);
        let a = if turned_a { size(self.bk, bm) } else { size(bm, self.bk) };
        let x = |turned: bool| if turned { size(bn, self.bk) } else { size(self.bk, bn) };
        [a, x(turned_x).max(x(turned_x2)), self.groups[0] * self.groups[1] * (c.size * c.size) as usize]
    }

    fn fits(&self, c: Cooperative, turned: [bool; 3], traits: GpuTraits) -> bool {
        let [a, x, y] = self.staged(c, turned);
        self.invocations(c) <= traits.max_invocations as usize
            && 2 * (a + x) + 4 * y <= traits.workgroup_bytes as usize
            // Which subgroup an invocation is in is known only where all have one width.
            && (c.one_width || self.groups == [1, 1])
    }
}

fn turned(g: &Gemm) -> [bool; 3] {
    [g.base.trans_a, g.base.trans_b, g.low_rank.is_some_and(|p| p.trans_b)]
}

/// The tiles worth trying; none where the call is not for cooperative matrices.
pub fn suitable(g: &Gemm, c: &GpuCall) -> Vec<&'static Tile> {
    // Groups are of few columns: time goes into reading.
    let fits = g.halves && g.group.is_none();
    let Some(matrices) = c.traits.cooperative.filter(|_| fits) else { return vec![] };
    let least = 2 * matrices.size as usize;
    let d = &g.base.dims;
    let (m, n) = (d.m.max(least).next_power_of_two(), d.n.max(least).next_power_of_two());
    let worth = |t: &&Tile| {
        let [bm, bn] = t.extents(matrices);
        t.fits(matrices, turned(g), c.traits) && (bm <= m && bn <= n || t.each == [2, 2] && t.groups == [1, 1])
    };
    TILES.iter().filter(worth).collect()
}

/// The kernel's overrides for a product.
pub fn constants(
    t: &Tile,
    g: &Gemm,
    c: &GpuCall,
    matrices: Cooperative,
    ending: &KernelEnding,
) -> Vec<(&'static str, f64)> {
    let ([gm, gn], [sm, sn]) = (t.groups, t.each);
    let (size, width) = (matrices.size as usize, matrices.width as usize);
    let aligned = Stored::of(g, c).y.vectors && ending.is_none();
    let extents = [("T", size), ("SM", sm), ("SN", sn), ("GM", gm), ("GN", gn), ("BK", t.bk), ("WIDTH", width)];
    let flags = TRANSPOSED.into_iter().zip(turned(g)).chain([("ALIGNED", aligned)]);
    extents.into_iter().chain(flags.map(|(name, on)| (name, on as usize))).map(|(name, x)| (name, x as f64)).collect()
}

pub fn source(t: &Tile, g: &Gemm, c: &GpuCall, matrices: Cooperative, ending: &KernelEnding) -> String {
    let turned = turned(g);
    let stored = Stored::of(g, c);
    let ([sm, sn], size) = (t.each, matrices.size);
    // Results are stored one by one, or as whole matrices.
    let bindings = ending.declare(&Stored { y: stored.scalar().y, ..stored }, "params.n");
    let access = stored.loads(|s, name| s.load(name));
    let matrix = |ty: &str, role: &str| format!("coop_mat{size}x{size}<{ty}, {role}>");
    // Operands stored as they are multiplied are read row by row, others column by column.
    let load = |name: &str, step: &str, role: &str, turned: bool, i: usize, offset: &str| {
        let ty = matrix("f16", role);
        let across = (role == "A") != turned;
        let at = match across {
            true => format!("({offset} + {i}u * T) * {step} + d"),
            false => format!("d * {step} + {offset} + {i}u * T"),
        };
        format!("coopLoad{}<{ty}>(&{name}[{at}], {step})", if turned { "" } else { "T" })
    };
    let multiply = |x_step: &str, turned_x: bool| {
        let mut text = String::new();
        for i in 0..sm {
            text += &format!("            let p{i} = {};\n", load("a_tile", "A_STEP", "A", turned[0], i, "down"));
        }
        for j in 0..sn {
            text += &format!("            let q{j} = {};\n", load("x_tile", x_step, "B", turned_x, j, "along"));
        }
        for (i, j) in (0..sm).flat_map(|i| (0..sn).map(move |j| (i, j))) {
            text += &format!("            c{i}_{j} = coopMultiplyAdd(p{i}, q{j}, c{i}_{j});\n");
        }
        text
    };
    let mut parts = [const { String::new() }; 3];
    let [accumulators, whole, edge] = &mut parts;
    for (i, j) in (0..sm).flat_map(|i| (0..sn).map(move |j| (i, j))) {
        let (row, col) = (format!("row0 + down + {i}u * T"), format!("col0 + along + {j}u * T"));
        *accumulators += &format!("    var c{i}_{j}: {};\n", matrix("f32", "C"));
        *whole += &format!(
            "        let i{i}_{j} = y_base + ({row}) * n + {col};\n        coopStoreT(c{i}_{j}, &y[i{i}_{j}], n);\n"
        );
        *edge += &format!(
            "        coopStoreT(c{i}_{j}, &y_tile[corner], T);\n        workgroupBarrier();\n        \
             put(y_base, {row}, {col}, subgroup, lane % WIDTH);\n        workgroupBarrier();\n"
        );
    }
    let first = multiply("X_STEP", turned[1]);
    let parts = [
        ("bindings", bindings.as_str()),
        ("access", &access),
        ("accumulators", accumulators),
        ("multiply", &first),
        ("whole", whole),
        ("edge", edge),
    ];
    let text = include_str!("../../../shaders/matmul/matmul_cooperative.wgsl");
    if stored.more.is_none() {
        return assemble::fill(text, &parts);
    }
    let words = ["X_ROWS", "X_COLS", "X_STEP"].map(|word| (word, word.replace('X', "X2")));
    let words: Vec<(&str, &str)> = words.iter().map(|(word, with)| (*word, with.as_str())).chain(SECOND).collect();
    let text = assemble::twice(text, "terms", FIRST_PART, &words);
    assemble::fill(&assemble::fill(&text, &parts), &[("multiply_more", &multiply("X2_STEP", turned[2]))])
}
