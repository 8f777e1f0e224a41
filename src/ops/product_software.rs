//! Kernels of matmul for software adapters, without workgroup memory or barriers.

use super::matmul::Dims;
use super::prelude::*;
use super::product::{Added, Storage, bindings, storage, with_rounding};
use super::template;

/// How `shaders/matmul_rows.wgsl` divides its work: `lanes` invocations along the columns and the rows, `rows` rows and
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
            _ => (Rows { lanes: [LANES, 1], rows: 16, columns: 4 }, Left::Alone),
        }
    }
}

/// The kernel of a product.
pub fn dispatch(c: &GpuCall, d: &Dims) -> Dispatch {
    let words = |x: usize| x as u32;
    let mut params = vec![words(d.m), words(d.n), words(d.k), words(d.batch)];
    params.extend([d.a.0, d.a.1, d.b.0, d.b.1].map(words));
    let depth = d.batch.min(c.traits.max_workgroups as usize);
    let [a, x, y] = storage(c, d);
    let by_rows = d.a.1 == 1 && d.b.1 == 1 && a.vectors && x.vectors;
    let added = Added::of(c);
    let (name, source, tile_m, tile_n) = if by_rows {
        let (t, left) = Rows::of(d, c.traits);
        ("matmul_rows", by_rows_source(t, left, [a, x, y], added), t.rows * t.lanes[1], 4 * t.columns * t.lanes[0])
    } else {
        let [a, x, y] = [a, x, y].map(|s| Storage { vectors: false, ..s });
        let bindings = bindings([a, x, y], added);
        let put = format!("fn put(i: u32, value: f32) {{\n    y[i] = value{};\n}}\n", added.plus("i", "params.n"));
        let access = [a.load_one("a"), x.load_one("x"), put].concat();
        let parts = [("bindings", bindings.as_str()), ("access", &access)];
        ("matmul_direct", template::fill(include_str!("../../shaders/matmul_direct.wgsl"), &parts), 8, 512)
    };
    Dispatch {
        shader: Shader { name, source: with_rounding(source).into() },
        constants: vec![],
        bindings: added.bindings(vec![Binding::Input(0), Binding::Input(1), Binding::Output(0)]),
        params,
        workgroups: [words(d.n.div_ceil(tile_n)), words(d.m.div_ceil(tile_m)), words(depth)],
    }
}

fn by_rows_source(t: Rows, left: Left, [a, x, y]: [Storage; 3], added: Added) -> String {
    let [lx, ly] = t.lanes;
    let tile = format!(
        "const LX: u32 = {lx}u;\nconst LY: u32 = {ly}u;\nconst ROWS: u32 = {}u;\nconst COLUMNS: u32 = {}u;\n",
        t.rows, t.columns
    );
    let bindings = bindings([a, x, y], added);
    let access = [a.load_one("a"), x.load_one("x")].concat();
    let (mut accumulators, mut multiply, mut stores) = (String::new(), String::new(), String::new());
    for j in 0..t.columns {
        accumulators += &format!("        let at{j} = min(col0 + {j}u * LX, n4 - 1u);\n");
    }
    let mut builtins = "";
    match left {
        Left::Alone => {
            for r in 0..t.rows {
                accumulators += &format!("        let a{r} = a_base + min(row0 + {r}u, last) * k4;\n");
                multiply += &format!("            let v{r} = load_a(a{r} + k);\n");
            }
        }
        Left::Shared { width } => {
            builtins = "    @builtin(subgroup_invocation_id) lane: u32,\n";
            for s in 0..t.rows / width {
                accumulators += &format!("        let a{s} = a_base + min(row0 + {}u + lane, last) * k4;\n", s * width);
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
            let plus = added.plus(&at, "n4");
            stores += &format!(
                "        if (row0 + {r}u < params.m && col0 + {j}u * LX < n4) {{\n            y[{at}] = c{r}_{j}{plus};\n        }}\n"
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
    let parts = [
        ("builtins", builtins),
        ("tile", tile.as_str()),
        ("bindings", &bindings),
        ("access", &access),
        ("accumulators", &accumulators),
        ("multiply", &multiply),
        ("stores", &stores),
    ];
    template::fill(include_str!("../../shaders/matmul_rows.wgsl"), &parts)
}
