//! Sources of the kernels of attention for software adapters. Reads are what costs there, since each invocation's is one of its own:
//! where a subgroup has the eight invocations of a tile, each reads one row of eight, and has the others' from its fellows.

use crate::ops::engine::assemble::fill;
use crate::ops::engine::primitive::GpuTraits;

/// Rows and invocations of a tile.
pub const TILE: usize = 8;

/// Eight rows of an operand that each invocation multiplies with a row of its own, and where those rows begin.
pub struct Rows {
    pub slot: &'static str,
    pub buffer: &'static str,
    /// The element of the buffer that the head begins at, and the parameter that says how far rows are apart.
    pub base: &'static str,
    pub row: &'static str,
}

impl Rows {
    pub const QUERIES: Rows = Rows { slot: "queries", buffer: "q", base: "q_base", row: "q_row" };
    pub const KEYS: Rows = Rows { slot: "keys", buffer: "k", base: "k_base", row: "k_row" };
    pub const VALUES: Rows = Rows { slot: "values", buffer: "v", base: "v_base", row: "v_row" };
    pub const GRADIENTS: Rows = Rows { slot: "gradients", buffer: "g", base: "y_base", row: "y_row" };
}

/// A kernel's source: `rows` are its tile's, `weights` the arrays (and slots) of eight numbers a key or query.
pub fn source(text: &str, rows: &[Rows], weights: &[&str], traits: GpuTraits) -> String {
    if traits.subgroup.is_none_or(|width| (width as usize) < TILE) {
        return text.to_string();
    }
    let all = |prefix: &str| -> String {
        let one = |i: usize| format!("                let {prefix}{i} = subgroupBroadcast(mine, {i}u);\n");
        (0..TILE).map(one).collect()
    };
    let own: String = rows
        .iter()
        .map(|Rows { buffer, base, row, .. }| {
            format!("    let {buffer}_mine = ({base} + min(first + share, last) * params.{row}) / 4u;\n")
        })
        .collect();
    let slots = [("builtins", "    @builtin(subgroup_invocation_id) share: u32,\n"), ("own", own.as_str())];
    let mut text = fill(text, &slots);
    for Rows { slot, buffer, .. } in rows {
        text =
            fill(&text, &[(slot, &format!("                let mine = {buffer}[{buffer}_mine + d];\n{}", all("a")))]);
    }
    for array in weights {
        let read = format!("                let mine = {array}[j * 8u + share];\n{}", all("w"));
        text = fill(&text, &[(array, &read)]);
    }
    text
}

/// Reductions over the tile's invocations within their subgroup, in place of those over workgroup memory.
pub fn reductions(text: &str, traits: GpuTraits) -> String {
    let reduce = |name: &str, function: &str| {
        format!(
            "fn {name}(lane: u32, x: vec4<f32>) -> vec4<f32> {{\n    let all = {function}(x);\n    return all;\n}}\n"
        )
    };
    match traits.subgroup {
        Some(width) if width as usize >= TILE => {
            fill(text, &[("reductions", &(reduce("largest", "subgroupMax") + "\n" + &reduce("total", "subgroupAdd")))])
        }
        _ => text.to_string(),
    }
}
