//! Device kernels of matmul: which kernel a product gets, and the source of each from its file.
//!
//! Every candidate of one product adds up the same terms in the same order, so that a race between them decides on time alone.

use super::cooperative;
use super::ending::KernelEnding;
use super::gemm::{Dims, Gemm};
use super::product_software;
use super::storage::{FIRST_PART, SECOND, Storage, Stored, TRANSPOSED};
use crate::ops::engine::assemble;
use crate::ops::engine::prelude::*;

/// How a workgroup of `shaders/matmul/matmul.wgsl` divides its work: `bm` x `bn` results, `bk` steps of k at a time, and `tm` x `tn`
/// results an invocation.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tile {
    name: &'static str,
    bm: usize,
    bn: usize,
    bk: usize,
    tm: usize,
    tn: usize,
}

impl Tile {
    const fn new(name: &'static str, [bm, bn, bk, tm, tn]: [usize; 5]) -> Tile {
        Tile { name, bm, bn, bk, tm, tn }
    }

    fn invocations(&self) -> usize {
        (self.bm / self.tm) * (self.bn / self.tn)
    }

    /// Vec4s of workgroup memory for each operand.
    fn staged(&self) -> [usize; 2] {
        [self.bm, self.bn].map(|side| self.bk * (side / 4 + 1))
    }

    /// The kernel's overrides for a product.
    fn constants(&self, g: &Gemm) -> Vec<(&'static str, f64)> {
        let turned = [g.base.trans_a, g.base.trans_b, g.low_rank.is_some_and(|p| p.trans_b)];
        let extents = ["BM", "BN", "BK", "TM", "TN"].into_iter().zip([self.bm, self.bn, self.bk, self.tm, self.tn]);
        let turned = TRANSPOSED.into_iter().zip(turned.map(usize::from));
        extents.chain(turned).map(|(name, x)| (name, x as f64)).collect()
    }

    fn fits(&self, traits: GpuTraits) -> bool {
        let bytes = 16 * self.staged().iter().sum::<usize>();
        self.invocations() <= traits.max_invocations as usize && bytes <= traits.workgroup_bytes as usize
    }
}

/// Every tile, larger ones first. Those of sixteen rows or columns are for products of low rank.
static TILES: &[Tile] = &[
    Tile::new("matmul 128x128x16.8x8", [128, 128, 16, 8, 8]),
    Tile::new("matmul 128x128x8.8x8", [128, 128, 8, 8, 8]),
    Tile::new("matmul 128x64x16.8x4", [128, 64, 16, 8, 4]),
    Tile::new("matmul 64x128x16.4x8", [64, 128, 16, 4, 8]),
    Tile::new("matmul 64x64x16.8x4", [64, 64, 16, 8, 4]),
    Tile::new("matmul 64x64x16.4x4", [64, 64, 16, 4, 4]),
    Tile::new("matmul 64x32x32.4x4", [64, 32, 32, 4, 4]),
    Tile::new("matmul 32x64x32.4x4", [32, 64, 32, 4, 4]),
    Tile::new("matmul 32x32x32.4x4", [32, 32, 32, 4, 4]),
    Tile::new("matmul 128x16x16.4x4", [128, 16, 16, 4, 4]),
    Tile::new("matmul 64x16x32.4x4", [64, 16, 32, 4, 4]),
    Tile::new("matmul 16x128x16.4x4", [16, 128, 16, 4, 4]),
    Tile::new("matmul 16x64x32.4x4", [16, 64, 32, 4, 4]),
];

/// The tiles worth trying: none of which much would lie beyond the edge.
fn suitable(d: &Dims, traits: GpuTraits) -> impl Iterator<Item = &'static Tile> {
    let (m, n) = (d.m.max(32).next_power_of_two(), d.n.max(32).next_power_of_two());
    TILES.iter().filter(move |t| t.fits(traits) && t.bm <= m && t.bn <= n)
}

/// Workgroups that keep a device busy.
const BUSY: usize = 96;

fn groups(d: &Dims, [bm, bn]: [usize; 2]) -> usize {
    d.batch * d.m.div_ceil(bm) * d.n.div_ceil(bn)
}

/// The tile where nothing was measured: large ones where there is work enough for every core of a device, then small ones.
fn usual(d: &Dims, traits: GpuTraits) -> &'static Tile {
    let of = |t: &Tile| groups(d, [t.bm, t.bn]);
    let best = suitable(d, traits).find(|t| of(t) >= BUSY);
    let least = || suitable(d, traits).max_by_key(|t| of(t));
    best.or_else(least).unwrap_or(&TILES[TILES.len() - 1])
}

/// Into how many parts k is cut, and the steps of each. It depends on the extents alone, since it decides in which order terms
/// are added: products of few results would leave most of a device idle otherwise.
fn split(d: &Dims) -> (usize, usize) {
    const GROUPS: usize = 128;
    const LEAST_DEPTH: usize = 256;
    const MOST_WORDS: usize = 1 << 24;
    let groups = d.batch * d.m.div_ceil(64) * d.n.div_ceil(64);
    let results = (d.batch * d.m * d.n).max(1);
    let parts = (GROUPS / groups.max(1)).min(d.k / LEAST_DEPTH).min(MOST_WORDS / results).min(32);
    if parts < 2 {
        return (1, d.k.max(1));
    }
    // A multiple of every tile's steps.
    let depth = d.k.div_ceil(parts).next_multiple_of(32);
    (d.k.div_ceil(depth), depth)
}

/// The names of the kernels that a call may choose among.
pub fn candidates(c: &GpuCall) -> Vec<&'static str> {
    if c.traits.software {
        return vec![];
    }
    let g = Gemm::decode(c.types_in, c.attrs);
    let d = g.base.dims;
    match cooperative::suitable(&g, c) {
        tiles if tiles.is_empty() => suitable(&d, c.traits).map(|t| t.name).collect(),
        tiles => tiles.into_iter().map(|t| t.name).collect(),
    }
}

/// The dispatches of a product.
pub fn dispatches(c: &GpuCall) -> Vec<Dispatch> {
    let g = Gemm::decode(c.types_in, c.attrs);
    let d = g.base.dims;
    if c.traits.software && g.group.is_none() {
        return vec![product_software::dispatch(&g, c)];
    }
    let (parts, depth) = split(&d);
    let last = KernelEnding::of(&g, c);
    // Parts of a product end when they are summed.
    let none = KernelEnding::none();
    let ending = if parts > 1 { &none } else { &last };
    let in_matrices = cooperative::suitable(&g, c);
    let (name, source, constants, [bm, bn]) = match (c.traits.cooperative, in_matrices.last()) {
        // All of them, since this kernel has no loop over what lies beyond the grid.
        (Some(matrices), Some(least)) if d.batch * parts <= c.traits.max_workgroups as usize => {
            let named = in_matrices.iter().find(|t| c.variant == Some(t.name));
            let busy = || in_matrices.iter().find(|t| groups(&d, t.extents(matrices)) >= BUSY);
            let tile = named.or_else(busy).unwrap_or(least);
            let source = cooperative::source(tile, &g, c, matrices, ending);
            (tile.name, source, cooperative::constants(tile, &g, c, matrices, ending), tile.extents(matrices))
        }
        _ => {
            let named = c.variant.and_then(|name| suitable(&d, c.traits).find(|t| t.name == name));
            let tile = named.unwrap_or_else(|| usual(&d, c.traits));
            (tile.name, tiled(tile, &g, c, ending), tile.constants(&g), [tile.bm, tile.bn])
        }
    };
    let results = d.batch * d.m * d.n;
    let scratch = Binding::Scratch(parts * results);
    let words = |x: usize| x as u32;
    let k2 = g.low_rank.map_or(0, |p| p.dims.k);
    let product = Dispatch {
        shader: Shader { name, source: source.into() },
        constants,
        bindings: ending.bindings(g.multiplied(), if parts > 1 { scratch } else { Binding::Output(0) }),
        params: [d.m, d.n, d.k, d.batch, parts, depth, k2, 0].map(words).to_vec(),
        workgroups: [d.n.div_ceil(bn), d.m.div_ceil(bm), (d.batch * parts).min(c.traits.max_workgroups as usize)]
            .map(words),
    };
    if parts == 1 {
        return vec![product];
    }
    let (workgroups, width) = grid(results, 64, c.traits);
    let sum = Dispatch {
        shader: Shader { name: "sum_parts", source: sum_source(&last).into() },
        constants: vec![],
        bindings: last.bindings(vec![scratch], Binding::Output(0)),
        params: vec![results as u32, width, parts as u32, words(d.n)],
        workgroups,
    };
    vec![product, sum]
}

/// The dispatches of a product inside another node, in whose choice of kernel it shares: `bindings` are its two operands and its result.
/// The second operand is stored as halves if `packed` says so.
pub fn within(c: &GpuCall, d: &Dims, bindings: [Binding; 3], packed: bool) -> Vec<Dispatch> {
    let mut all = as_matmul(c, d, packed, dispatches);
    for b in all.iter_mut().flat_map(|d| &mut d.bindings) {
        *b = match *b {
            Binding::Input(i) => bindings[i],
            Binding::Output(_) => bindings[2],
            scratch => scratch,
        };
    }
    all
}

/// The dispatch of a product with nothing done for tiles of rows from `counts[at]` on, which the device has worked out. The kernel gets
/// one more binding, and four words before its own parameters.
pub fn counted(mut d: Dispatch, counts: Binding, at: usize) -> Dispatch {
    let number = d.bindings.len() + 1;
    let slots = [
        ("counts", format!("@group(0) @binding({number}) var<storage, read> row_counts: array<i32>;\n")),
        (
            "chunk",
            ["chunk", "chunk_unused0", "chunk_unused1", "chunk_unused2"].map(|f| format!("    {f}: u32,\n")).concat(),
        ),
        ("counted", "    if (row0 >= u32(row_counts[params.chunk])) {\n        return;\n    }\n".into()),
    ];
    let slots = slots.each_ref().map(|(name, text)| (*name, text.as_str()));
    d.shader.source = assemble::fill(&d.shader.source, &slots).into();
    d.params.splice(0..0, [at as u32, 0, 0, 0]);
    d.bindings.push(counts);
    d
}

/// The kernels that such a product may choose among.
pub fn candidates_within(c: &GpuCall, d: &Dims, packed: bool) -> Vec<&'static str> {
    as_matmul(c, d, packed, candidates)
}

/// A product inside another node, as the call that it would be alone.
fn as_matmul<R>(c: &GpuCall, d: &Dims, packed: bool, f: impl Fn(&GpuCall) -> R) -> R {
    let (trans_a, trans_b) = (d.a.1 != 1, d.b.1 != 1);
    let sides = |rows: usize, cols: usize, turned: bool| Type::f32(if turned { [cols, rows] } else { [rows, cols] });
    let types_in = [sides(d.m, d.k, trans_a), sides(d.k, d.n, trans_b)];
    let types_out = [Type::f32([d.m, d.n])];
    let flags = [("trans_a", trans_a), ("trans_b", trans_b), ("halves", c.attrs.flag("halves"))];
    let attrs = flags.into_iter().fold(Attrs::new(), |attrs, (name, flag)| attrs.with(name, Attr::Bool(flag)));
    f(&GpuCall { attrs: &attrs, types_in: &types_in, types_out: &types_out, packed: &[false, packed], ..*c })
}

fn sum_source(ending: &KernelEnding) -> String {
    let y = Storage { vectors: false, halves: false, rounds: false };
    let bindings = ending.source(y, 2, ["params.row", "(params.n / params.row)"]);
    assemble::fill(include_str!("../../../shaders/matmul/sum_parts.wgsl"), &[("bindings", &bindings)])
}

fn tiled(t: &Tile, g: &Gemm, c: &GpuCall, ending: &KernelEnding) -> String {
    let stored = Stored::of(g, c);
    let bindings = ending.declare(&stored, if stored.y.vectors { "(params.n / 4u)" } else { "params.n" });
    let store = match stored.y.vectors {
        true => "    if (count > 0u) {\n        keep(i / 4u, value);\n    }\n".to_string(),
        false => {
            (0..4).map(|o| format!("    if (count > {o}u) {{\n        keep(i + {o}u, value[{o}]);\n    }}\n")).collect()
        }
    };
    let store = format!("fn store(i: u32, count: u32, value: vec4<f32>) {{\n{store}}}\n");
    let access = stored.loads(|s, name| s.load(name)) + &store;

    let (columns, strips) = (t.tn / 4, t.tm / 4);
    let each = |f: &mut dyn FnMut(usize, usize)| (0..t.tm).for_each(|r| (0..columns).for_each(|j| f(r, j)));
    let mut accumulators = String::new();
    each(&mut |r, j| accumulators += &format!("        var c{r}_{j} = vec4<f32>(0.0);\n"));
    let mut multiply = String::new();
    for j in 0..columns {
        multiply += &format!("                let x{j} = x_tile[d * X_STEP + tx + {j}u * TX];\n");
    }
    for s in 0..strips {
        multiply += &format!("                let a{s} = a_tile[d * A_STEP + ty + {s}u * TY];\n");
    }
    each(&mut |r, j| {
        let (s, field) = (r / 4, ["x", "y", "z", "w"][r % 4]);
        multiply += &format!("                c{r}_{j} = fma(vec4<f32>(a{s}.{field}), x{j}, c{r}_{j});\n");
    });
    let mut stores = String::new();
    each(&mut |r, j| {
        let row = format!("row0 + (ty + {}u * TY) * 4u + {}u", r / 4, r % 4);
        let col = format!("col0 + (tx + {j}u * TX) * 4u");
        stores += &format!("        put(y_base, {row}, {col}, c{r}_{j});\n");
    });
    let parts = [
        ("bindings", bindings.as_str()),
        ("access", &access),
        ("accumulators", &accumulators),
        ("multiply", &multiply),
        ("stores", &stores),
    ];
    let text = include_str!("../../../shaders/matmul/matmul.wgsl");
    match stored.more {
        None => assemble::fill(text, &parts),
        Some(_) => {
            let text = assemble::twice(text, "terms", FIRST_PART, &SECOND);
            assemble::fill(&assemble::fill(&text, &parts), &[("multiply_more", &multiply)])
        }
    }
}
