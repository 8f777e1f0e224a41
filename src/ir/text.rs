//! Graphs as text, one definition a line, and back.
//!
//! ```text
//! %0: i32[2,12] = input "input_ids"
//! %1: f32[320,64] = weight "embed.weight"
//! %2: f32[] = constant [2.0]
//! %3: f32[2,12,64] = gather(%1, %0) {axis=0} @"/embed/Gather"
//! %4: f32[2,12,64] = mul(%3, %2)
//! return "logits" = %4
//! return "grad" = %4 -> gradient "embed.weight"
//! ```
//!
//! Constants of more than [`MAX_PRINTED`] elements print as `constant ...`, and weights as their name. Neither reads back with its data:
//! such a constant is zeros then, and such a weight cannot be loaded.

use super::{
    Attr, Attrs, DType, Def, Graph, Leaf, Node, Output, Program, Sink, Tensor, Type, Value, ValueInfo, Weight,
};
use std::fmt::{self, Write};
use std::sync::Arc;

/// The longest constant that prints element by element.
pub const MAX_PRINTED: usize = 64;

fn quoted(s: &str) -> String {
    serde_json::Value::from(s).to_string()
}

/// Attributes as ` {name=value, ...}`; nothing where there are none.
pub fn attrs(attrs: &Attrs) -> String {
    if attrs.0.is_empty() {
        return String::new();
    }
    let parts: Vec<String> = attrs
        .0
        .iter()
        .map(|(name, value)| match value {
            Attr::Int(x) => format!("{name}={x}"),
            Attr::Ints(xs) => format!("{name}=[{}]", xs.iter().map(i64::to_string).collect::<Vec<_>>().join(",")),
            Attr::Float(x) => format!("{name}={x:?}"),
            Attr::Bool(x) => format!("{name}={x}"),
            Attr::Str(x) => format!("{name}={}", quoted(x)),
            Attr::Program(p) => format!("{name}=`{p}`"),
        })
        .collect();
    format!(" {{{}}}", parts.join(", "))
}

fn constant(t: &Tensor) -> String {
    if t.elements() > MAX_PRINTED {
        return "...".to_string();
    }
    let list: Vec<String> = match t {
        Tensor::F32(a) => a.iter().map(|x| format!("{x:?}")).collect(),
        Tensor::I32(a) => a.iter().map(i32::to_string).collect(),
        Tensor::Bool(a) => a.iter().map(u32::to_string).collect(),
    };
    format!("[{}]", list.join(", "))
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, info) in self.values.iter().enumerate() {
            if let Def::Leaf(leaf) = &info.def {
                write!(f, "%{i}: {} = ", info.ty)?;
                match leaf {
                    Leaf::Input(name) => writeln!(f, "input {}", quoted(name))?,
                    Leaf::Parameter(name) => writeln!(f, "parameter {}", quoted(name))?,
                    Leaf::Weight(w) => writeln!(f, "weight {}", quoted(&w.name))?,
                    Leaf::Constant(t) => writeln!(f, "constant {}", constant(t))?,
                    Leaf::State(name) => writeln!(f, "state {}", quoted(name))?,
                }
            }
        }
        for node in &self.nodes {
            writeln!(f, "{}", self.node_text(node))?;
        }
        for out in &self.outputs {
            write!(f, "return {} = {}", quoted(&out.name), out.value)?;
            match &out.sink {
                Sink::Fetch => writeln!(f)?,
                Sink::Gradient(p) => writeln!(f, " -> gradient {}", quoted(p))?,
                Sink::State(s) => writeln!(f, " -> state {}", quoted(s))?,
            }
        }
        Ok(())
    }
}

impl Graph {
    /// One node as a line of text.
    pub fn node_text(&self, node: &Node) -> String {
        let outs: Vec<String> = node.outputs.iter().map(|&v| format!("{v}: {}", self.ty(v))).collect();
        let ins: Vec<String> = node.inputs.iter().map(Value::to_string).collect();
        let mut line = format!("{} = {}({}){}", outs.join(", "), node.op, ins.join(", "), attrs(&node.attrs));
        if !node.origin.is_empty() {
            let _ = write!(line, " @{}", quoted(&node.origin));
        }
        line
    }

    /// Reads what [`fmt::Display`] writes. The values may be numbered in any order.
    pub fn parse(text: &str) -> Result<Graph, String> {
        let mut graph = Graph::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut cursor = Cursor { rest: line };
            parse_line(&mut graph, &mut cursor).map_err(|e| format!("line {}: {e}: {line}", number + 1))?;
        }
        Ok(graph)
    }
}

/// Reads what [`attrs`] writes (with or without the leading space).
pub fn parse_attrs(text: &str) -> Result<Attrs, String> {
    let mut cursor = Cursor { rest: text.trim() };
    let out = cursor.attrs()?;
    if cursor.rest.is_empty() { Ok(out) } else { Err(format!("unexpected '{}'", cursor.rest)) }
}

fn parse_line(graph: &mut Graph, c: &mut Cursor) -> Result<(), String> {
    if c.eat("return ") {
        let name = c.string()?;
        c.expect("=")?;
        let value = c.value()?;
        let sink = if !c.eat("->") {
            Sink::Fetch
        } else if c.eat("gradient") {
            Sink::Gradient(c.string()?)
        } else {
            c.expect("state")?;
            Sink::State(c.string()?)
        };
        graph.outputs.push(Output { name, value, sink });
        return Ok(());
    }
    let mut outs = Vec::new();
    loop {
        let v = c.value()?;
        c.expect(":")?;
        outs.push((v, c.ty()?));
        if !c.eat(",") {
            break;
        }
    }
    c.expect("=")?;
    let word = c.word()?.to_string();
    let leaf = match word.as_str() {
        "input" => Some(Leaf::Input(c.string()?)),
        "parameter" => Some(Leaf::Parameter(c.string()?)),
        "state" => Some(Leaf::State(c.string()?)),
        "weight" => {
            let name = c.string()?;
            let message = format!("weight {name} was read from text and has no data");
            Some(Leaf::Weight(Weight::new(name, 0, move || panic!("{message}"))))
        }
        "constant" => Some(Leaf::Constant(Arc::new(c.constant(&outs[0].1)?))),
        _ => None,
    };
    if let Some(leaf) = leaf {
        let (v, ty) = outs.remove(0);
        return define(graph, v, ty, Def::Leaf(leaf));
    }
    c.expect("(")?;
    let mut inputs = Vec::new();
    while !c.eat(")") {
        inputs.push(c.value()?);
        c.eat(",");
    }
    let attrs = c.attrs()?;
    let origin: Arc<str> = if c.eat("@") { c.string()?.into() } else { "".into() };
    let node = graph.nodes.len();
    let outputs = outs.iter().map(|(v, _)| *v).collect();
    for (output, (v, ty)) in outs.into_iter().enumerate() {
        define(graph, v, ty, Def::Node { node, output })?;
    }
    graph.nodes.push(Node { op: word, inputs, outputs, attrs, origin });
    Ok(())
}

fn define(graph: &mut Graph, v: Value, ty: Type, def: Def) -> Result<(), String> {
    if v.index() > 1_000_000 {
        return Err(format!("value number {v} is out of range"));
    }
    let unset = || ValueInfo { ty: Type::f32([]), def: Def::Node { node: usize::MAX, output: 0 } };
    while graph.values.len() <= v.index() {
        graph.values.push(unset());
    }
    graph.values[v.index()] = ValueInfo { ty, def };
    Ok(())
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("expected '{token}' at '{}'", self.rest)) }
    }

    fn take(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !accept(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        token
    }

    fn word(&mut self) -> Result<&'a str, String> {
        let w = self.take(|c| c.is_alphanumeric() || c == '_');
        if w.is_empty() { Err(format!("expected a name at '{}'", self.rest)) } else { Ok(w) }
    }

    fn value(&mut self) -> Result<Value, String> {
        self.expect("%")?;
        let digits = self.take(|c| c.is_ascii_digit());
        digits.parse().map(Value).map_err(|_| "expected a value number".to_string())
    }

    fn string(&mut self) -> Result<String, String> {
        let mut stream = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
        let s = stream.next().and_then(Result::ok).ok_or_else(|| format!("expected a string at '{}'", self.rest))?;
        self.rest = self.rest[stream.byte_offset()..].trim_start();
        Ok(s)
    }

    fn list<T>(&mut self, item: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
        self.expect("[")?;
        let mut out = Vec::new();
        while !self.eat("]") {
            let token = self.take(|c| c.is_alphanumeric() || "+-._".contains(c));
            out.push(item(token).ok_or_else(|| format!("bad number '{token}'"))?);
            self.eat(",");
        }
        Ok(out)
    }

    fn ty(&mut self) -> Result<Type, String> {
        let name = self.word()?;
        let dtype = DType::parse(name).ok_or_else(|| format!("unknown element type '{name}'"))?;
        Ok(Type::new(dtype, self.list(|t| t.parse::<usize>().ok())?))
    }

    fn constant(&mut self, ty: &Type) -> Result<Tensor, String> {
        let shape = ty.shape.clone();
        let count = |n: usize| if n == ty.elements() { Ok(()) } else { Err("wrong number of elements".to_string()) };
        if self.eat("...") {
            return Ok(Tensor::from_words(ty, vec![0; ty.elements()]));
        }
        match ty.dtype {
            DType::F32 => self.list(|t| t.parse().ok()).and_then(|v| count(v.len()).map(|()| Tensor::f32(shape, v))),
            DType::I32 => self.list(|t| t.parse().ok()).and_then(|v| count(v.len()).map(|()| Tensor::i32(shape, v))),
            DType::Bool => self.list(|t| t.parse().ok()).and_then(|v| count(v.len()).map(|()| Tensor::bool(shape, v))),
        }
    }

    fn attrs(&mut self) -> Result<Attrs, String> {
        let mut out = Attrs::new();
        if !self.eat("{") {
            return Ok(out);
        }
        while !self.eat("}") {
            let name = self.word()?.to_string();
            self.expect("=")?;
            let value = if self.rest.starts_with('"') {
                Attr::Str(self.string()?)
            } else if self.rest.starts_with('[') {
                Attr::Ints(self.list(|t| t.parse().ok())?)
            } else if self.eat("`") {
                let end = self.rest.find('`').ok_or("program without an end")?;
                let program = Program::parse(&self.rest[..end])?;
                self.rest = self.rest[end + 1..].trim_start();
                Attr::Program(Arc::new(program))
            } else {
                let token = self.take(|c| c.is_alphanumeric() || "+-._".contains(c));
                match token {
                    "true" => Attr::Bool(true),
                    "false" => Attr::Bool(false),
                    _ if token.parse::<i64>().is_ok() => Attr::Int(token.parse().unwrap_or_default()),
                    _ => Attr::Float(token.parse().map_err(|_| format!("bad attribute value '{token}'"))?),
                }
            };
            out.0.insert(name, value);
            self.eat(",");
        }
        Ok(out)
    }
}
