//! The body of a fused elementwise operation: a short straight-line program over scalars.

use super::{Attrs, DType};
use std::fmt;

/// Where an instruction reads an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arg {
    /// The n-th input of the fused node, broadcast to the iteration shape.
    Input(usize),
    /// The result of the n-th instruction.
    Instr(usize),
}

/// One elementwise primitive applied to scalars.
#[derive(Clone, Debug, PartialEq)]
pub struct Instr {
    pub op: String,
    pub args: Vec<Arg>,
    pub attrs: Attrs,
    /// Element type of the result.
    pub dtype: DType,
}

/// Instructions in order, and which results leave the program (one per output of the node).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Program {
    pub instrs: Vec<Instr>,
    pub outputs: Vec<usize>,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, instr) in self.instrs.iter().enumerate() {
            write!(f, "t{i}:{}={}(", instr.dtype, instr.op)?;
            for (k, a) in instr.args.iter().enumerate() {
                let sep = if k > 0 { "," } else { "" };
                match a {
                    Arg::Input(n) => write!(f, "{sep}i{n}")?,
                    Arg::Instr(n) => write!(f, "{sep}t{n}")?,
                }
            }
            write!(f, "){}; ", super::text::attrs(&instr.attrs))?;
        }
        let outs: Vec<String> = self.outputs.iter().map(|o| format!("t{o}")).collect();
        write!(f, "return {}", outs.join(","))
    }
}

impl Program {
    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Result<Program, String> {
        let mut program = Program::default();
        for part in text.split(';').map(str::trim) {
            if let Some(outs) = part.strip_prefix("return ") {
                for o in outs.split(',') {
                    let n = o.trim().strip_prefix('t').and_then(|n| n.parse().ok());
                    program.outputs.push(n.ok_or_else(|| format!("bad program output '{o}'"))?);
                }
                continue;
            }
            let bad = || format!("bad program instruction '{part}'");
            let (head, call) = part.split_once('=').ok_or_else(bad)?;
            let dtype = head.split_once(':').and_then(|(_, d)| DType::parse(d)).ok_or_else(bad)?;
            let (op, rest) = call.split_once('(').ok_or_else(bad)?;
            let (args, attrs) = rest.split_once(')').ok_or_else(bad)?;
            let args: Option<Vec<Arg>> = args
                .split(',')
                .filter(|a| !a.is_empty())
                .map(|a| match a.as_bytes().first()? {
                    b'i' => a[1..].parse().ok().map(Arg::Input),
                    b't' => a[1..].parse().ok().map(Arg::Instr),
                    _ => None,
                })
                .collect();
            let attrs = super::text::parse_attrs(attrs.trim())?;
            program.instrs.push(Instr { op: op.to_string(), args: args.ok_or_else(bad)?, attrs, dtype });
        }
        Ok(program)
    }
}
