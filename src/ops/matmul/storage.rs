//! How kernels of products read their operands: declarations, and functions that load elements.

use super::gemm::{Gemm, Group, Pair};
use crate::ops::engine::primitive::GpuCall;

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
            (true, true) => format!("unpack_halves({name}[i])"),
            (false, true) => format!("unpack_half({name}[i / 2u], i)"),
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
            (true, true) => format!("    let four = unpack_halves({name}[i / 4u]);\n"),
            (false, halves) => {
                let element = |o: usize| match halves {
                    false => format!("{name}[i + {o}u]"),
                    true => format!("unpack_half({name}[(i + {o}u) / 2u], i + {o}u)"),
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
    pub fn of(g: &Gemm, c: &GpuCall) -> Stored {
        let by_four = |x: usize| x.is_multiple_of(4);
        let storage = |inner: usize, input: usize| {
            let halves = c.packs(input);
            Storage { vectors: by_four(inner), halves, rounds: g.halves && !halves }
        };
        let pair = |p: &Pair| {
            let [a, b] = p.dims.inner();
            [storage(a, p.lhs), storage(b, p.rhs)]
        };
        let [a, x] = pair(&g.base);
        let y = Storage { vectors: by_four(g.base.dims.n), halves: false, rounds: false };
        Stored { a, x, y, more: g.low_rank.as_ref().map(pair), group: g.group }
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

    /// How many operands there are.
    pub fn count(&self) -> usize {
        self.operands().count()
    }

    /// Declarations of the operands, from binding 1 on.
    pub fn bindings(&self) -> String {
        self.operands().enumerate().map(|(i, (s, name))| s.binding(i + 1, name, "read")).collect()
    }

    /// Functions that read the operands.
    pub fn loads(&self, load: impl Fn(Storage, &str) -> String) -> String {
        let own: String = self.operands().map(|(s, name)| load(s, name)).collect();
        own + &self.group.map_or(String::new(), |g| g.load())
    }
}

/// The overrides that say which operands are stored transposed.
pub const TRANSPOSED: [&str; 3] = ["A_TRANSPOSED", "X_TRANSPOSED", "X2_TRANSPOSED"];

/// Words that are others where a kernel's lines stand for a second term.
pub const SECOND: [(&str, &str); 5] = [
    ("load_a", "load_a2"),
    ("load_x", "load_x2"),
    ("X_TRANSPOSED", "X2_TRANSPOSED"),
    ("params.k", "params.more"),
    ("multiply", "multiply_more"),
];

/// What stands before the lines of a second term: it goes with the first part.
pub const FIRST_PART: &str = "        let begin = 0u;\n        let end = select(0u, params.more, part == 0u);\n        \
                              let a_base = batch * m * params.more;\n        let x_base = batch * params.more * n;\n";
