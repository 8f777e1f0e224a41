//! Kernels of matmul for software adapters, without workgroup memory or barriers.

use super::ending::KernelEnding;
use super::gemm::{Dims, Gemm};
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
    let rows_alone = |d: &Dims| d.a.1 == 1 && d.b.1 == 1;
    let by_rows = rows_alone(d) && second.as_ref().is_none_or(rows_alone) && stored.reads_vectors();
    let (name, source, constants, tile_m, tile_n) = if by_rows {
        let (t, left) = Rows::of(d, c.traits);
        let source = by_rows_source(t, left, stored, &ending);
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

fn by_rows_source(t: Rows, left: Left, stored: Stored, ending: &KernelEnding) -> String {
    let bindings = ending.declare(&stored, "(params.n / 4u)");
    let access = stored.loads(|s, name| s.load_one(name));
    // Where rows of the left operand begin.
    let mut begins = String::new();
    let (mut accumulators, mut multiply, mut stores) = (String::new(), String::new(), String::new());
    for j in 0..t.columns {
        accumulators += &format!("        let at{j} = min(col0 + {j}u * LX, n4 - 1u);\n");
    }
    let mut builtins = "";
    match left {
        Left::Alone => {
            for r in 0..t.rows {
                begins += &format!("        let a{r} = a_base + min(row0 + {r}u, last) * k4;\n");
                multiply += &format!("            let v{r} = load_a(a{r} + k);\n");
            }
        }
        Left::Shared { width } => {
            builtins = "    @builtin(subgroup_invocation_id) lane: u32,\n";
            for s in 0..t.rows / width {
                begins += &format!("        let a{s} = a_base + min(row0 + {}u + lane, last) * k4;\n", s * width);
                multiply += &format!("            let p{s} = load_a(a{s} + k);\n");
            }
            for r in 0..t.rows {
                multiply += &format!("            let v{r} = subgroupBroadcast(p{}, {}u);\n", r / width, r % width);
            }
        }
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
    for (step, field) in ["x", "y", "z", "w"].iter().enumerate() {
        for j in 0..t.columns {
            multiply += &format!("            let x{step}_{j} = load_x(at + {step}u * n4 + at{j});\n");
        }
        for r in 0..t.rows {
            for j in 0..t.columns {
                multiply += &format!("            c{r}_{j} = fma(vec4<f32>(v{r}.{field}), x{step}_{j}, c{r}_{j});\n");
            }
        }
    }
    let accumulators = begins.clone() + &accumulators;
    let parts = [
        ("builtins", builtins),
        ("bindings", &bindings),
        ("access", access.as_str()),
        ("accumulators", &accumulators),
        ("multiply", &multiply),
        ("stores", &stores),
    ];
    let exchanged = assemble::exchange(&assemble::exchange(&multiply, "load_a", "load_a2"), "load_x", "load_x2");
    let text = include_str!("../../../shaders/matmul/matmul_rows.wgsl");
    if stored.more.is_none() {
        return assemble::fill(text, &parts);
    }
    let first = "        let k4 = params.more / 4u;\n        let a_base = batch * params.m * k4;\n";
    let text = assemble::twice(text, "terms", &format!("{first}{begins}"), &SECOND);
    assemble::fill(&assemble::fill(&text, &parts), &[("multiply_more", &exchanged)])
}
