//! Device kernels of matmul: which kernel a product gets, and the source of each from its template.
//!
//! Every candidate of one product adds up the same terms in the same order, so that a race between them decides on time alone.

use super::cooperative;
use super::ending::KernelEnding;
use super::group::Group;
use super::plain::{Dims, Operands, dims, more};
use super::product_software;
use crate::ops::engine::prelude::*;
use crate::ops::engine::template;

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
    let d = dims(c.types_in, c.attrs);
    match cooperative::suitable(c, &d) {
        tiles if tiles.is_empty() => suitable(&d, c.traits).map(|t| t.name).collect(),
        tiles => tiles.into_iter().map(|t| t.name).collect(),
    }
}

/// The dispatches of a product.
pub fn dispatches(c: &GpuCall) -> Vec<Dispatch> {
    let d = dims(c.types_in, c.attrs);
    if c.traits.software && Group::of(c.attrs).is_none() {
        return vec![product_software::dispatch(c, &d)];
    }
    let (parts, depth) = split(&d);
    let last = KernelEnding::of(c);
    // Parts of a product end when they are summed.
    let none = KernelEnding::none();
    let ending = if parts > 1 { &none } else { &last };
    let in_matrices = cooperative::suitable(c, &d);
    let (name, source, [bm, bn]) = match (c.traits.cooperative, in_matrices.last()) {
        // All of them, since this kernel has no loop over what lies beyond the grid.
        (Some(matrices), Some(least)) if d.batch * parts <= c.traits.max_workgroups as usize => {
            let named = in_matrices.iter().find(|t| c.variant == Some(t.name));
            let busy = || in_matrices.iter().find(|t| groups(&d, t.extents(matrices)) >= BUSY);
            let tile = named.or_else(busy).unwrap_or(least);
            (tile.name, cooperative::source(tile, c, matrices, ending), tile.extents(matrices))
        }
        _ => {
            let named = c.variant.and_then(|name| suitable(&d, c.traits).find(|t| t.name == name));
            let tile = named.unwrap_or_else(|| usual(&d, c.traits));
            (tile.name, tiled(tile, c, ending), [tile.bm, tile.bn])
        }
    };
    let results = d.batch * d.m * d.n;
    let scratch = Binding::Scratch(parts * results);
    let words = |x: usize| x as u32;
    let k2 = more(c.types_in, c.attrs).map_or(0, |d| d.k);
    let product = Dispatch {
        shader: Shader { name, source: source.into() },
        constants: vec![],
        bindings: ending.bindings(operands(c), if parts > 1 { scratch } else { Binding::Output(0) }),
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

/// The operands of a call's terms.
pub fn operands(c: &GpuCall) -> Vec<Binding> {
    let operands = Operands::of(c.types_in.len(), c.attrs);
    let second = operands.second.into_iter().flatten();
    std::iter::once(0).chain(operands.rights).chain(second).map(Binding::Input).collect()
}

/// How an operand is stored: in vec4s (its innermost extent is divisible by four) or elements, of f32 or packed halves.
#[derive(Clone, Copy)]
pub struct Storage {
    pub vectors: bool,
    pub halves: bool,
    /// Whether elements of f32 are rounded to halves when they are read.
    pub rounds: bool,
}

impl Storage {
    fn wgsl(self) -> &'static str {
        match (self.vectors, self.halves) {
            (true, false) => "vec4<f32>",
            (false, false) => "f32",
            (true, true) => "vec2<u32>",
            (false, true) => "u32",
        }
    }

    pub fn binding(self, at: usize, name: &str, access: &str) -> String {
        format!("@group(0) @binding({at}) var<storage, {access}> {name}: array<{}>;\n", self.wgsl())
    }

    /// A function that reads the vec4 or element of this number.
    pub fn load_one(self, name: &str) -> String {
        let ty = if self.vectors { "vec4<f32>" } else { "f32" };
        let read = match (self.vectors, self.halves) {
            (_, false) => format!("{name}[i]"),
            (true, true) => format!("vec4<f32>(unpack2x16float({name}[i].x), unpack2x16float({name}[i].y))"),
            (false, true) => format!("unpack2x16float({name}[i / 2u])[i % 2u]"),
        };
        let read = match (self.rounds, self.vectors) {
            (false, _) => read,
            (true, true) => format!("nearest_halves({read})"),
            (true, false) => format!("nearest_halves(vec4<f32>({read})).x"),
        };
        format!("fn load_{name}(i: u32) -> {ty} {{\n    return {read};\n}}\n\n")
    }

    /// A function that reads four neighbouring elements of `name`, of which `count` are there.
    pub fn load(self, name: &str) -> String {
        let read = match (self.vectors, self.halves) {
            (true, false) => format!("    let four = {name}[i / 4u];\n"),
            (true, true) => format!(
                "    let pair = {name}[i / 4u];\n    let four = vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));\n"
            ),
            (false, halves) => {
                let element = |o: usize| match halves {
                    false => format!("{name}[i + {o}u]"),
                    true => format!("unpack2x16float({name}[(i + {o}u) / 2u])[(i + {o}u) % 2u]"),
                };
                let guarded = |o: usize| {
                    let field = ["x", "y", "z", "w"][o];
                    format!("    if (count > {o}u) {{\n        four.{field} = {};\n    }}\n", element(o))
                };
                let fields: String = (0..4).map(guarded).collect();
                format!("    var four = vec4<f32>(0.0);\n{fields}")
            }
        };
        let four = if self.rounds { "nearest_halves(four)" } else { "four" };
        format!(
            "fn load_{name}(i: u32, count: u32) -> vec4<f32> {{\n    if (count == 0u) {{\n        return vec4<f32>(0.0);\n    \
             }}\n{read}    return {four};\n}}\n\n"
        )
    }
}

/// How a call's operands are stored, and its result; the operands of a second term come last.
#[derive(Clone, Copy)]
pub struct Stored {
    pub a: Storage,
    pub x: Storage,
    pub y: Storage,
    pub more: Option<[Storage; 2]>,
    pub group: Option<Group>,
}

impl Stored {
    pub fn of(c: &GpuCall) -> Stored {
        let by_four = |x: usize| x.is_multiple_of(4);
        let storage = |d: &Dims, i: usize| {
            let inner = match i % 2 {
                0 => {
                    if d.a.1 == 1 {
                        d.k
                    } else {
                        d.m
                    }
                }
                _ => {
                    if d.b.1 == 1 {
                        d.n
                    } else {
                        d.k
                    }
                }
            };
            let halves = c.packs(i);
            Storage { vectors: by_four(inner), halves, rounds: c.attrs.flag("halves") && !halves }
        };
        let d = dims(c.types_in, c.attrs);
        Stored {
            a: storage(&d, 0),
            x: storage(&d, 1),
            y: Storage { vectors: by_four(d.n), halves: false, rounds: false },
            more: more(c.types_in, c.attrs).map(|d| [storage(&d, 2), storage(&d, 3)]),
            group: Group::of(c.attrs),
        }
    }

    /// The same, read element by element.
    pub fn scalar(self) -> Stored {
        let scalar = |s: Storage| Storage { vectors: false, ..s };
        let more = self.more.map(|m| m.map(scalar));
        Stored { a: scalar(self.a), x: scalar(self.x), y: scalar(self.y), more, ..self }
    }

    /// Whether every operand is read in vec4s.
    pub fn reads_vectors(&self) -> bool {
        self.operands().all(|(s, _)| s.vectors)
    }

    /// The operands and what they are called in kernels.
    fn operands(&self) -> impl Iterator<Item = (Storage, &'static str)> {
        let [a2, x2] = [0, 1].map(|i| self.more.map(|m| m[i]));
        let rights = (0..self.group.map_or(1, |g| g.count)).map(move |i| match self.group {
            None => (self.x, "x"),
            Some(_) => (self.x, Group::right(i)),
        });
        let second = [(a2, "a2"), (x2, "x2")].into_iter().filter_map(|(s, n)| Some((s?, n)));
        std::iter::once((self.a, "a")).chain(rights).chain(second)
    }

    /// Declarations of the operands, and of what the ending has.
    pub fn bindings(&self, ending: &KernelEnding, row: &str) -> String {
        let own: String = self.operands().enumerate().map(|(i, (s, name))| s.binding(i + 1, name, "read")).collect();
        own + &ending.source(self.y, self.operands().count() + 1, [row, "params.m"])
    }

    /// Functions that read the operands.
    pub fn loads(&self, load: impl Fn(Storage, &str) -> String) -> String {
        let own: String = self.operands().map(|(s, name)| load(s, name)).collect();
        own + &self.group.map_or(String::new(), |g| g.load())
    }
}

/// Words that are others where a kernel's lines stand for a second term.
pub const SECOND: [(&str, &str); 5] = [
    ("load_a", "load_a2"),
    ("load_x", "load_x2"),
    ("X_TRANSPOSED", "X2_TRANSPOSED"),
    ("params.k", "params.more"),
    ("multiply", "multiply_more"),
];

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
    template::fill(include_str!("../../../shaders/matmul/sum_parts.wgsl"), &[("bindings", &bindings)])
}

/// What stands before the lines of a second term: it goes with the first part.
pub const FIRST_PART: &str = "        let begin = 0u;\n        let end = select(0u, params.more, part == 0u);\n        \
                              let a_base = batch * m * params.more;\n        let x_base = batch * params.more * n;\n";

fn tiled(t: &Tile, c: &GpuCall, ending: &KernelEnding) -> String {
    let stored = Stored::of(c);
    let [a_staged, x_staged] = t.staged();
    let [turned_a, turned_x, turned_x2] = ["trans_a", "trans_b", "trans_b2"].map(|name| c.attrs.flag(name));
    let tile = format!(
        "const BM: u32 = {}u;\nconst BN: u32 = {}u;\nconst BK: u32 = {}u;\nconst TM: u32 = {}u;\nconst TN: u32 = {}u;\n\
         const A_TRANSPOSED: bool = {turned_a};\nconst X_TRANSPOSED: bool = {turned_x};\n\
         const X2_TRANSPOSED: bool = {turned_x2};\n\
         var<workgroup> a_tile: array<vec4<f32>, {a_staged}>;\nvar<workgroup> x_tile: array<vec4<f32>, {x_staged}>;\n",
        t.bm, t.bn, t.bk, t.tm, t.tn
    );
    let bindings = stored.bindings(ending, if stored.y.vectors { "(params.n / 4u)" } else { "params.n" });
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
        ("tile", tile.as_str()),
        ("bindings", &bindings),
        ("access", &access),
        ("accumulators", &accumulators),
        ("multiply", &multiply),
        ("stores", &stores),
    ];
    let text = include_str!("../../../shaders/matmul/matmul.wgsl");
    match stored.more {
        None => template::fill(text, &parts),
        Some(_) => {
            let text = template::twice(text, "terms", FIRST_PART, &SECOND);
            template::fill(&template::fill(&text, &parts), &[("multiply_more", &multiply)])
        }
    }
}
