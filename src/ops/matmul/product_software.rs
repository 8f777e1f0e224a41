//! Kernels of matmul for software adapters, without workgroup memory or barriers.

use super::ending::KernelEnding;
use super::gemm::{Dims, Gemm, Pair};
use super::storage::{SECOND, Stored};
use crate::ops::engine::assemble;
use crate::ops::engine::prelude::*;

/// How `shaders/matmul/matmul_rows.wgsl` divides its work: `lanes` invocations along the columns and the rows, `rows` rows and
/// `columns` vec4s each.
#[derive(Clone, Copy)]
struct Rows {
    lanes: [usize; 2],
    rows: usize,
    columns: usize,
}

/// How an invocation comes by elements of the left operand's rows.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// It reads all of them.
    Alone,
    /// It reads those of one row in `width`, and has the others' from its subgroup: reads are what costs on software adapters.
    Shared { width: usize },
}

impl Rows {
    /// Reads are what costs on software adapters, since each lane's is one of its own: an invocation multiplies many rows with what it
    /// has read, and shares the reading of rows in its subgroup where that is known. Where there are fewer columns than a workgroup
    /// has lanes for, the others take rows.
    fn of(d: &Dims, traits: GpuTraits) -> (Rows, Left) {
        const LANES: usize = 8;
        let along = (d.n / 4).next_power_of_two().clamp(1, LANES);
        match traits.subgroup.map(|width| width as usize) {
            _ if along < LANES => (Rows { lanes: [along, LANES / along], rows: 8, columns: 1 }, Left::Alone),
            Some(width @ 4..=32) => {
                let rows = 16_usize.next_multiple_of(width);
                (Rows { lanes: [width, 1], rows, columns: 1 }, Left::Shared { width })
            }
            // Larger tiles are faster, but take drivers minutes to compile.
            _ => (Rows { lanes: [LANES, 1], rows: 8, columns: 2 }, Left::Alone),
        }
    }

    /// The kernel's overrides.
    fn constants(&self) -> Vec<(&'static str, f64)> {
        let [lx, ly] = self.lanes;
        [("LX", lx), ("LY", ly), ("ROWS", self.rows), ("COLUMNS", self.columns)].map(|(n, x)| (n, x as f64)).to_vec()
    }
}

/// The kernel of a product.
pub fn dispatch(g: &Gemm, c: &GpuCall) -> Dispatch {
    let words = |x: usize| x as u32;
    let (d, second) = (&g.base.dims, g.low_rank.map(|p| p.dims));
    let mut params = vec![words(d.m), words(d.n), words(d.k), words(d.batch)];
    params.extend([d.a.0, d.a.1, d.b.0, d.b.1].map(words));
    params.extend(second.map_or([0; 5], |d| [d.k, d.a.0, d.a.1, d.b.0, d.b.1]).map(words));
    params.extend([0; 3]);
    let depth = d.batch.min(c.traits.max_workgroups as usize);
    let (stored, ending) = (Stored::of(g, c), KernelEnding::of(g, c));
    let by_four = |x: usize| x.is_multiple_of(4);
    let by_rows = stored.reads_vectors() && g.terms().all(|p| by_four(p.dims.k) && by_four(p.dims.n));
    let (name, source, constants, tile_m, tile_n) = if by_rows {
        let (t, left) = Rows::of(d, c.traits);
        let source = by_rows_source(t, left, g, stored, &ending);
        ("matmul_rows", source, t.constants(), t.rows * t.lanes[1], 4 * t.columns * t.lanes[0])
    } else {
        let stored = stored.scalar();
        let parts =
            [("bindings", ending.declare(&stored, "params.n")), ("access", stored.loads(|s, name| s.load_one(name)))];
        let parts = parts.each_ref().map(|(name, text)| (*name, text.as_str()));
        let text = include_str!("../../../shaders/matmul/matmul_direct.wgsl");
        let text = match second {
            Some(_) => assemble::twice(text, "terms", DIRECT_SECOND, &[&SECOND[..], &DIRECT_WORDS].concat()),
            None => text.to_string(),
        };
        ("matmul_direct", assemble::fill(&text, &parts), vec![], 8, 512)
    };
    Dispatch {
        shader: Shader { name, source: source.into() },
        constants,
        bindings: ending.bindings(g.multiplied(), Binding::Output(0)),
        params,
        workgroups: [words(d.n.div_ceil(tile_n)), words(d.m.div_ceil(tile_m)), words(depth)],
    }
}

/// What stands before the lines of a second term where operands are read by strides, and the names that are others in them.
const DIRECT_SECOND: &str = "            let a_base = batch * params.m * params.more;\n            \
                             let x_base = batch * params.more * params.n;\n";
const DIRECT_WORDS: [(&str, &str); 4] = [
    ("params.a_row", "params.more_a_row"),
    ("params.a_col", "params.more_a_col"),
    ("params.x_row", "params.more_x_row"),
    ("params.x_col", "params.more_x_col"),
];

fn by_rows_source(t: Rows, left: Left, g: &Gemm, stored: Stored, ending: &KernelEnding) -> String {
    let bindings = ending.declare(&stored, "(params.n / 4u)");
    let access = stored.loads(|s, name| s.load_one(name));
    let builtins = match left {
        Left::Alone => "",
        Left::Shared { .. } => "    @builtin(subgroup_invocation_id) lane: u32,\n",
    };
    let (mut accumulators, mut stores) = (String::new(), String::new());
    for j in 0..t.columns {
        accumulators += &format!("        let at{j} = min(col0 + {j}u * LX, n4 - 1u);\n");
    }
    for r in 0..t.rows {
        for j in 0..t.columns {
            accumulators += &format!("        var c{r}_{j} = vec4<f32>(0.0);\n");
            let at = format!("y_base + (row0 + {r}u) * n4 + col0 + {j}u * LX");
            stores += &format!(
                "        if (row0 + {r}u < params.m && col0 + {j}u * LX < n4) {{\n            keep({at}, c{r}_{j});\n        }}\n"
            );
        }
    }
    let [begins, multiply] = steps(t, left, &g.base, ["load_a", "load_x"]);
    let parts = [
        ("builtins", builtins),
        ("bindings", &bindings),
        ("access", access.as_str()),
        ("accumulators", &accumulators),
        ("begins", &begins),
        ("multiply", &multiply),
        ("stores", &stores),
    ];
    let text = include_str!("../../../shaders/matmul/matmul_rows.wgsl");
    let Some(second) = &g.low_rank else { return assemble::fill(text, &parts) };
    let [begins, multiply] = steps(t, left, second, ["load_a2", "load_x2"]);
    let first = "        let k4 = params.more / 4u;\n        let a_base = batch * params.m * k4;\n";
    let text = assemble::twice(text, "terms", first, &[&SECOND[..], &[("begins", "begins_more")]].concat());
    assemble::fill(&assemble::fill(&text, &parts), &[("begins_more", &begins), ("multiply_more", &multiply)])
}

/// The lines of one term, whose operands these functions read: where an invocation's reads begin, and four steps of k. Rows of the left
/// operand are read as vec4s along k, or where it is stored transposed, as vec4s of four rows at one k.
fn steps(t: Rows, left: Left, term: &Pair, [load_a, load_x]: [&str; 2]) -> [String; 2] {
    const FIELDS: [&str; 4] = ["x", "y", "z", "w"];
    let (mut begins, mut multiply) = (String::new(), String::new());
    // Rows that one vec4 has elements of where the operand is stored transposed, four to a vec4.
    let fours = t.rows / 4;
    // Where the first of four rows stands, and how far the next k is.
    if term.trans_a {
        begins += "        let m4 = params.m / 4u;\n";
    }
    let four = |i: &str| format!("min(row0 / 4u + {i}, m4 - 1u)");
    match (left, term.trans_a) {
        (Left::Alone, false) => {
            for r in 0..t.rows {
                begins += &format!("        let a{r} = a_base + min(row0 + {r}u, last) * k4;\n");
                multiply += &format!("            let v{r} = {load_a}(a{r} + k);\n");
            }
        }
        (Left::Alone, true) => {
            (0..fours).for_each(|q| begins += &format!("        let a{q} = a_base + {};\n", four(&format!("{q}u"))));
            for (step, q) in (0..4).flat_map(|step| (0..fours).map(move |q| (step, q))) {
                multiply +=
                    &format!("            let v{} = {load_a}(a{q} + (4u * k + {step}u) * m4);\n", step * fours + q);
            }
        }
        (Left::Shared { width }, turned) => {
            for s in 0..t.rows / width {
                let own = format!("({}u + lane)", s * width);
                let (begin, at) = match turned {
                    false => (format!("min(row0 + {own}, last) * k4"), "k"),
                    true => (format!("{own} / {fours}u * m4 + {}", four(&format!("{own} % {fours}u"))), "4u * k * m4"),
                };
                begins += &format!("        let a{s} = a_base + {begin};\n");
                multiply += &format!("            let p{s} = {load_a}(a{s} + {at});\n");
            }
            for i in 0..t.rows {
                multiply += &format!("            let v{i} = subgroupBroadcast(p{}, {}u);\n", i / width, i % width);
            }
        }
    }
    for j in 0..t.columns {
        if term.trans_b {
            begins += &format!("        let x{j} = x_base + 4u * at{j} * k4;\n");
            for i in 0..4 {
                multiply += &format!("            let t{i}_{j} = {load_x}(x{j} + {i}u * k4 + k);\n");
            }
        }
    }
    for (step, field) in FIELDS.iter().enumerate() {
        for j in 0..t.columns {
            let x = match term.trans_b {
                false => format!("{load_x}(at + {step}u * n4 + at{j})"),
                true => format!("vec4<f32>(t0_{j}.{field}, t1_{j}.{field}, t2_{j}.{field}, t3_{j}.{field})"),
            };
            multiply += &format!("            let x{step}_{j} = {x};\n");
        }
        for r in 0..t.rows {
            let v = match term.trans_a {
                false => format!("v{r}.{field}"),
                true => format!("v{}.{}", step * fours + r / 4, FIELDS[r % 4]),
            };
            for j in 0..t.columns {
                multiply += &format!("            c{r}_{j} = fma(vec4<f32>({v}), x{step}_{j}, c{r}_{j});\n");
            }
        }
    }
    [begins, multiply]
}
