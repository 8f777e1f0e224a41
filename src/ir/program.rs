//! Attributes, of which one is the body of a fused elementwise operation: a short straight-line program over scalars.

use super::DType;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    Int(i64),
    Ints(Vec<i64>),
    Float(f64),
    Bool(bool),
    Str(String),
    Program(Arc<Program>),
}

/// A node's attributes by name. Readers return what `infer` has checked to be there, so a miss is a bug of ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(pub BTreeMap<String, Attr>);

impl Attrs {
    pub fn new() -> Attrs {
        Attrs::default()
    }

    pub fn with(mut self, name: &str, value: Attr) -> Attrs {
        self.0.insert(name.to_string(), value);
        self
    }

    pub fn get_int(&self, name: &str) -> Option<i64> {
        match self.0.get(name) {
            Some(Attr::Int(x)) => Some(*x),
            _ => None,
        }
    }

    pub fn get_ints(&self, name: &str) -> Option<&[i64]> {
        match self.0.get(name) {
            Some(Attr::Ints(x)) => Some(x),
            _ => None,
        }
    }

    pub fn get_float(&self, name: &str) -> Option<f64> {
        match self.0.get(name) {
            Some(Attr::Float(x)) => Some(*x),
            _ => None,
        }
    }

    pub fn get_str(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Attr::Str(x)) => Some(x),
            _ => None,
        }
    }

    pub fn get_program(&self) -> Option<&Arc<Program>> {
        match self.0.get("program") {
            Some(Attr::Program(p)) => Some(p),
            _ => None,
        }
    }

    /// A flag; false when it is not there.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(Attr::Bool(true)))
    }

    pub fn int(&self, name: &str) -> i64 {
        self.get_int(name).unwrap_or_else(|| panic!("attribute '{name}' was checked by infer"))
    }

    pub fn float(&self, name: &str) -> f64 {
        self.get_float(name).unwrap_or_else(|| panic!("attribute '{name}' was checked by infer"))
    }

    pub fn ints(&self, name: &str) -> &[i64] {
        self.get_ints(name).unwrap_or_else(|| panic!("attribute '{name}' was checked by infer"))
    }

    /// A list of non-negative integers, as sizes or axes.
    pub fn sizes(&self, name: &str) -> Vec<usize> {
        self.ints(name).iter().map(|&x| x as usize).collect()
    }
}

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
