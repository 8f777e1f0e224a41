//! What a product ends with: something added to it, and elementwise instructions on each element while it is at hand.
//!
//! The program of a call reads the sum as its first input and the call's extra operands as the others. Its results come after the sum
//! itself where the call keeps that.

use super::gemm::{Epilogue, Gemm, Group};
use super::storage::{Storage, Stored};
use crate::ir::Program;
use crate::ops::elementwise::kernel::lines;
use crate::ops::elementwise::program::{self, BLOCK, Banks, SharedOut, kernels};
use crate::ops::engine::parallel::{self, Shared};
use crate::ops::engine::prelude::*;
use crate::ops::engine::primitive::BlockFn;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// How an extra operand is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Read {
    /// Element by element, as the result.
    Full,
    /// One row for all.
    Row,
    /// One element for all.
    One,
}

impl Read {
    /// How an operand of this type is read beside results of `y`, if it can be.
    pub fn of(t: &Type, y: &Type) -> Option<Read> {
        match () {
            _ if t.elements() == 1 => Some(Read::One),
            _ if t.shape == y.shape => Some(Read::Full),
            _ if t.rank() == 1 && t.shape.last() == y.shape.last() => Some(Read::Row),
            _ => None,
        }
    }
}

/// Checks a call's program and extra operands, and gives the types of its results.
pub fn infer(y: &Type, extras: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    let Some(program) = attrs.get_program() else {
        return if extras.is_empty() { Ok(vec![y.clone()]) } else { Err("has extra operands and no program".into()) };
    };
    if let Some(t) = extras.iter().find(|t| Read::of(t, y).is_none()) {
        return Err(format!("{t} does not go with results of {y}"));
    }
    let ins: Vec<&Type> = std::iter::once(y).chain(extras.iter().copied()).collect();
    program::check(program, &ins)?;
    let floats = program.outputs.iter().all(|&k| program.instrs[k].dtype == DType::F32);
    let results = program.outputs.len() + attrs.flag("keeps") as usize;
    if floats { Ok(vec![y.clone(); results]) } else { Err("ends in floats alone".into()) }
}

/// Attributes of a call with this program and this many operands for it.
pub fn attrs(own: Attrs, program: Program, extras: usize, keeps: bool) -> Attrs {
    let own = own.with("program", Attr::Program(Arc::new(program)));
    own.with("extras", Attr::Int(extras as i64)).with("keeps", Attr::Bool(keeps))
}

/// A program on the host.
pub struct Ending<'a, T> {
    program: &'a Program,
    kernels: SmallVec<[BlockFn<T>; 64]>,
    extras: SmallVec<[(Data<'a, T>, DType, Read); 4]>,
    outs: &'a [SharedOut<'a, T>],
    /// Whether the first result is the sum itself.
    keeps: bool,
    /// Elements of a row.
    n: usize,
}

impl<'a, T: Element> Ending<'a, T> {
    /// The ending of a call, if it has a program. Sums stand in the first of its results.
    pub fn of(
        epilogue: &Epilogue<'a>,
        types_in: &'a [Type],
        ins: &'a [Data<'a, T>],
        y: &Type,
        outs: &'a [SharedOut<'a, T>],
    ) -> Option<Ending<'a, T>> {
        let program = epilogue.program?;
        let extra = |i: usize| (ins[i], types_in[i].dtype, Read::of(&types_in[i], y).expect("checked by infer"));
        Some(Ending {
            program,
            kernels: kernels(program),
            extras: epilogue.operands.clone().map(extra).collect(),
            outs,
            keeps: epilogue.keeps,
            n: *y.shape.last().expect("a product has columns"),
        })
    }

    /// Runs on a rectangle of sums that are final; rows are counted over all batch entries.
    ///
    /// # Safety
    /// The rectangle is this task's alone.
    pub unsafe fn run(&self, sums: &Shared<T>, rows: Range<usize>, columns: Range<usize>) {
        let (inputs, instrs) = (1 + self.extras.len(), self.program.instrs.len());
        let wide = columns.len().min(BLOCK);
        let tall = BLOCK / wide.max(1);
        parallel::scratch((inputs + instrs) * BLOCK, |memory: &mut [T]| {
            let banks = Banks { first: memory.as_mut_ptr() };
            for left in columns.clone().step_by(wide.max(1)) {
                for top in rows.clone().step_by(tall) {
                    let (w, h) = (wide.min(columns.end - left), tall.min(rows.end - top));
                    let row = |r: usize| (top + r) * self.n + left..(top + r) * self.n + left + w;
                    // SAFETY: one bank for each input and instruction, large enough for the block; the rectangle is ours.
                    unsafe {
                        let mut first = banks.write(0, DType::F32, w * h);
                        let first = first.float();
                        (0..h).for_each(|r| first[r * w..][..w].copy_from_slice(sums.part(row(r))));
                        for (i, &(data, dtype, read)) in self.extras.iter().enumerate() {
                            let from = |r: usize| match read {
                                Read::Full => row(r),
                                Read::Row => left..left + w,
                                Read::One => 0..1,
                            };
                            match (data, banks.write(1 + i, dtype, w * h)) {
                                (Data::Float(x), DataMut::Float(to)) => fill(x, to, w, from),
                                (Data::Int(x), DataMut::Int(to)) => fill(x, to, w, from),
                                _ => panic!("a bank has the type of its input"),
                            }
                        }
                        let dtype = |i: usize| if i == 0 { DType::F32 } else { self.extras[i - 1].1 };
                        let input = |i: usize| banks.read(i, dtype(i), w * h);
                        program::block(self.program, &self.kernels, &banks, inputs, w * h, input, |_| None);
                        for (out, &k) in self.outs[self.keeps as usize..].iter().zip(&self.program.outputs) {
                            let from = banks.read(inputs + k, DType::F32, w * h).float();
                            (0..h).for_each(|r| out.write(row(r)).float().copy_from_slice(&from[r * w..][..w]));
                        }
                    }
                }
            }
        });
    }
}

/// Fills rows of `w` elements with the range of `x` that each has; one element goes everywhere.
fn fill<E: Copy>(x: &[E], to: &mut [E], w: usize, from: impl Fn(usize) -> Range<usize>) {
    for (r, to) in to.chunks_exact_mut(w).enumerate() {
        match &x[from(r)] {
            &[one] => to.fill(one),
            row => to.copy_from_slice(row),
        }
    }
}

/// What is added to a product on a device.
#[derive(Clone, Copy, PartialEq)]
enum Added {
    Nothing,
    /// One row for all.
    Row,
    /// A matrix of the result's extents.
    Rows,
}

/// The end of a device kernel.
pub struct KernelEnding<'a> {
    added: Added,
    program: Option<&'a Program>,
    /// Element types of the program's inputs, the sum first.
    dtypes: Vec<DType>,
    reads: Vec<Read>,
    results: usize,
    keeps: bool,
    /// What is added and what the program reads, by input.
    operands: Vec<usize>,
    group: Option<Group>,
}

impl<'a> KernelEnding<'a> {
    pub fn of(g: &Gemm<'a>, c: &GpuCall) -> KernelEnding<'a> {
        let extras = &c.types_in[g.epilogue.operands.clone()];
        KernelEnding {
            added: match g.init.map(|init| init.row) {
                None => Added::Nothing,
                Some(true) => Added::Row,
                Some(false) => Added::Rows,
            },
            program: g.epilogue.program.map(|p| p.as_ref()),
            dtypes: std::iter::once(DType::F32).chain(extras.iter().map(|t| t.dtype)).collect(),
            reads: extras.iter().map(|t| Read::of(t, &c.types_out[0]).expect("checked by infer")).collect(),
            results: c.types_out.len(),
            keeps: g.epilogue.keeps,
            operands: g.init.map(|init| init.input).into_iter().chain(g.epilogue.operands.clone()).collect(),
            group: g.group,
        }
    }

    /// That of a kernel whose sums are final as they are, or become so elsewhere.
    pub fn none() -> KernelEnding<'a> {
        KernelEnding {
            added: Added::Nothing,
            program: None,
            dtypes: vec![DType::F32],
            reads: vec![],
            results: 1,
            keeps: false,
            operands: vec![],
            group: None,
        }
    }

    /// Whether sums are the result.
    pub fn is_none(&self) -> bool {
        self.added == Added::Nothing && self.program.is_none() && self.group.is_none()
    }

    /// Declarations of the results from binding `at` on, of what is added and of extra operands, all stored as `y` says; and a
    /// function `keep` that is given the number of an element (or vec4) and its sum. `row` is how many of those a row has, `rows`
    /// how many rows there are.
    pub fn source(&self, y: Storage, at: usize, [row, rows]: [&str; 2]) -> String {
        let mut text = String::new();
        let mut at = at;
        let mut bind = |access: &str, name: &str, dtype: DType, vectors: bool| {
            let ty = if vectors { format!("vec4<{}>", dtype.wgsl()) } else { dtype.wgsl().to_string() };
            text += &format!("@group(0) @binding({at}) var<storage, {access}> {name}: array<{ty}>;\n");
            at += 1;
        };
        let name = |o: usize| if o == 0 { "y".to_string() } else { format!("y{o}") };
        let turned = self.group.is_some_and(|g| g.trans_y);
        (0..self.results).for_each(|o| bind("read_write", &name(o), DType::F32, y.vectors && !turned));
        if self.added != Added::Nothing {
            bind("read", "c", DType::F32, y.vectors);
        }
        for (i, &read) in self.reads.iter().enumerate() {
            bind("read", &format!("e{i}"), self.dtypes[1 + i], y.vectors && read != Read::One);
        }
        let sum = match self.added {
            Added::Nothing => "sum".to_string(),
            Added::Row => format!("sum + c[i % {row}]"),
            Added::Rows => "sum + c[i]".to_string(),
        };
        let ty = if y.vectors { "vec4<f32>" } else { "f32" };
        let mut keep = String::new();
        if let Some(group) = &self.group {
            keep += &group.keep(y.vectors, [row, rows]);
        } else if self.program.is_none() {
            keep += &format!("    y[i] = {sum};\n");
        } else {
            keep += &format!("    let value = {sum};\n");
            if self.keeps {
                keep += "    y[i] = value;\n";
            }
            for (i, read) in self.reads.iter().enumerate() {
                keep += &match read {
                    Read::Full => format!("    let v{i} = e{i}[i];\n"),
                    Read::Row => format!("    let v{i} = e{i}[i % {row}];\n"),
                    Read::One if y.vectors => {
                        format!("    let v{i} = vec4<{}>(e{i}[0]);\n", self.dtypes[1 + i].wgsl())
                    }
                    Read::One => format!("    let v{i} = e{i}[0];\n"),
                };
            }
            let parts: &[&str] = if y.vectors { &[".x", ".y", ".z", ".w"] } else { &[""] };
            for (p, part) in parts.iter().enumerate() {
                let values: String = (0..self.reads.len()).map(|i| format!(", v{i}{part}")).collect();
                keep += &format!("    let r{p} = finish(value{part}{values});\n");
            }
            for o in self.keeps as usize..self.results {
                let of = |p: usize| format!("r{p}.t{}", o - self.keeps as usize);
                let all = match y.vectors {
                    true => format!("vec4<f32>({}, {}, {}, {})", of(0), of(1), of(2), of(3)),
                    false => of(0),
                };
                keep += &format!("    {}[i] = {all};\n", name(o));
            }
            text += &self.finish();
        }
        format!("{text}\nfn keep(i: u32, sum: {ty}) {{\n{keep}}}\n")
    }

    /// Declarations of a product's operands, and of what its ending has, whose rows have so many elements or vec4s.
    pub fn declare(&self, stored: &Stored, row: &str) -> String {
        stored.bindings() + &self.source(stored.y, stored.count() + 1, [row, "params.m"])
    }

    /// The program as a function of one element.
    fn finish(&self) -> String {
        let program = self.program.expect("asked only where there is one");
        let arguments: String =
            self.dtypes[1..].iter().enumerate().map(|(i, t)| format!(", x{}: {}", i + 1, t.wgsl())).collect();
        let fields: String = (0..program.outputs.len()).map(|o| format!("    t{o}: f32,\n")).collect();
        let results: Vec<String> = program.outputs.iter().map(|k| format!("t{k}")).collect();
        format!(
            "\nstruct Results {{\n{fields}}}\n\nfn finish(x0: f32{arguments}) -> Results {{\n{}    return Results({});\n}}\n",
            lines(program, &self.dtypes),
            results.join(", ")
        )
    }

    /// The bindings that go with [`KernelEnding::source`], behind a kernel's own operands. The first result is `y`.
    pub fn bindings(&self, mut own: Vec<Binding>, y: Binding) -> Vec<Binding> {
        own.push(y);
        own.extend((1..self.results).map(Binding::Output));
        own.extend(self.operands.iter().copied().map(Binding::Input));
        own
    }
}
