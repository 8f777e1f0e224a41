//! The engine for elementwise primitives on the host: broadcasting, fusing and looping; `kernel` has the device's.
//!
//! A [`Program`] runs over every index of the output shape; inputs broadcast to it. One primitive alone is a program of
//! one instruction.

use super::instructions::find;
use crate::ir::{Arg, Attr, Attrs, Axes, DType, Instr, Program, Type};
use crate::ops::engine::math::Real;
use crate::ops::engine::parallel::{self, Shared};
use crate::ops::engine::primitive::{BlockFn, CpuCall, Data, DataMut, Element, Gpu, violations};
use crate::ops::engine::strided::collapse;
use smallvec::SmallVec;
use std::sync::Arc;

/// Elements to a block: small enough that a program's intermediate results stay in the first-level cache.
pub const BLOCK: usize = 512;
/// The most operands of an elementwise primitive.
const MAX_ARGS: usize = 3;

/// The program of a node: its own if it is fused, else the node as one instruction.
pub fn program_of(op: &str, attrs: &Attrs, types_in: usize, out: &Type) -> Arc<Program> {
    match attrs.get_program() {
        Some(p) => p.clone(),
        None => {
            let args = (0..types_in).map(Arg::Input).collect();
            let instr = Instr { op: op.to_string(), args, attrs: attrs.clone(), dtype: out.dtype };
            Arc::new(Program { instrs: vec![instr], outputs: vec![0] })
        }
    }
}

/// How an input is read while the output is walked in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Access {
    /// Element by element, as the output.
    Full,
    /// One element for all.
    Splat,
    /// By the strides of the merged axes.
    Strided(Axes),
}

/// The merged axes of the output, and how each input is read along them.
pub fn accesses(out: &[usize], ins: &[Type]) -> (Axes, SmallVec<[Access; 8]>) {
    let lists: SmallVec<[Axes; 8]> = ins.iter().map(|t| t.shape.broadcast_strides(out)).collect();
    let (dims, lists) = collapse(out, &lists);
    let through = |s: &[usize]| (1..s.len()).all(|d| s[d - 1] == s[d] * dims[d]) && s[s.len() - 1] == 1;
    let access = |s: Axes| match () {
        _ if s.iter().all(|&x| x == 0) => Access::Splat,
        _ if through(&s) => Access::Full,
        _ => Access::Strided(s),
    };
    let list = lists.into_iter().map(access).collect();
    (dims, list)
}

/// Blocks of intermediate elements, side by side in a thread's own memory.
pub struct Banks<T> {
    pub first: *mut T,
}

impl<T: Real> Banks<T> {
    /// # Safety
    /// Bank `i` must be there, and what it was given out as before must have been of the same type.
    pub unsafe fn read<'a>(&self, i: usize, dtype: DType, n: usize) -> Data<'a, T> {
        // SAFETY: by the caller; an integer takes no more room than a float.
        unsafe {
            let at = self.first.add(i * BLOCK);
            match dtype {
                DType::F32 => Data::Float(std::slice::from_raw_parts(at, n)),
                _ => Data::Int(std::slice::from_raw_parts(at.cast::<i32>(), n)),
            }
        }
    }

    /// # Safety
    /// As [`Banks::read`], and nothing else may use the bank meanwhile.
    pub unsafe fn write<'a>(&self, i: usize, dtype: DType, n: usize) -> DataMut<'a, T> {
        // SAFETY: by the caller.
        unsafe {
            let at = self.first.add(i * BLOCK);
            match dtype {
                DType::F32 => DataMut::Float(std::slice::from_raw_parts_mut(at, n)),
                _ => DataMut::Int(std::slice::from_raw_parts_mut(at.cast::<i32>(), n)),
            }
        }
    }
}

pub enum SharedOut<'a, T> {
    Float(Shared<'a, T>),
    Int(Shared<'a, i32>),
}

impl<'a, T: Copy> SharedOut<'a, T> {
    pub fn new(out: &'a mut DataMut<T>) -> SharedOut<'a, T> {
        match out {
            DataMut::Float(x) => SharedOut::Float(Shared::new(x)),
            DataMut::Int(x) => SharedOut::Int(Shared::new(x)),
        }
    }

    /// The elements of a range, to write.
    ///
    /// # Safety
    /// This task alone may use them.
    pub unsafe fn write(&self, range: std::ops::Range<usize>) -> DataMut<'_, T> {
        // SAFETY: by the caller.
        unsafe {
            match self {
                SharedOut::Float(o) => DataMut::Float(o.part(range)),
                SharedOut::Int(o) => DataMut::Int(o.part(range)),
            }
        }
    }

    /// The elements of a range that this task alone works on.
    fn read(&self, range: std::ops::Range<usize>, to: &mut DataMut<T>) {
        // SAFETY: ranges of different tasks do not overlap, and the part is given up before the block is written.
        unsafe {
            match (self, to) {
                (SharedOut::Float(o), DataMut::Float(y)) => y.copy_from_slice(o.part(range)),
                (SharedOut::Int(o), DataMut::Int(y)) => y.copy_from_slice(o.part(range)),
                _ => panic!("values that share memory have one type"),
            }
        }
    }
}

/// The block kernel of an elementwise primitive.
fn kernel<T: Element>(op: &str) -> BlockFn<T> {
    let block = find(op).and_then(|p| T::block(&p.cpu));
    block.unwrap_or_else(|| panic!("programs hold elementwise primitives only, not '{op}'"))
}

/// Runs the instructions on `len` elements. Results go to banks from `first` on, but for those that `result` has another place for.
///
/// # Safety
/// There are banks enough; what `input` and `result` give is there, and what is written is nobody else's.
pub unsafe fn block<'a, T: Real>(
    program: &Program,
    kernels: &[BlockFn<T>],
    banks: &Banks<T>,
    first: usize,
    len: usize,
    input: impl Fn(usize) -> Data<'a, T>,
    result: impl Fn(usize) -> Option<DataMut<'a, T>>,
) {
    for (k, instr) in program.instrs.iter().enumerate() {
        let mut args = [Data::Int(&[]); MAX_ARGS];
        for (to, arg) in args.iter_mut().zip(&instr.args) {
            *to = match *arg {
                // SAFETY: earlier instructions have written their banks, as what they are read.
                Arg::Instr(j) => unsafe { banks.read(first + j, program.instrs[j].dtype, len) },
                Arg::Input(i) => input(i),
            };
        }
        // SAFETY: one bank for each instruction.
        let mut to = result(k).unwrap_or_else(|| unsafe { banks.write(first + k, instr.dtype, len) });
        kernels[k](&args[..instr.args.len()], &mut to, &instr.attrs);
    }
}

/// The block kernels of a program's instructions.
pub fn kernels<T: Element>(program: &Program) -> SmallVec<[BlockFn<T>; 64]> {
    program.instrs.iter().map(|i| kernel(&i.op)).collect()
}

/// Runs `program` over the output shape on all cores. Inputs that `call.in_place` names are read from the outputs they
/// share memory with, each block before it is written.
pub fn run<T: Element>(program: &Program, call: &mut CpuCall<T>) {
    let n = call.types_out[0].elements();
    let (dims, access) = accesses(&call.types_out[0].shape, call.types_in);
    let kernels = kernels(program);
    let outs: SmallVec<[SharedOut<T>; 8]> = call.outs.iter_mut().map(SharedOut::new).collect();
    let ins = call.ins;
    let shared = |i: usize| call.in_place.iter().find(|p| p.0 == i).map(|p| p.1);
    // An output that no later instruction reads is written where it goes.
    let direct: SmallVec<[Option<usize>; 64]> = (0..program.instrs.len())
        .map(|k| {
            let read = program.instrs.iter().any(|i| i.args.contains(&Arg::Instr(k)));
            let mut outs = program.outputs.iter().enumerate().filter(|(_, o)| **o == k).map(|(o, _)| o);
            let first = outs.next();
            first.filter(|_| !read && outs.next().is_none())
        })
        .collect();
    let loads = |i: usize| shared(i).is_some() || access[i] != Access::Full;
    let banks = access.len() + program.instrs.len();
    parallel::ranges(n, (parallel::GRAIN / program.instrs.len().max(1)).max(8 * BLOCK), |range| {
        parallel::scratch(banks * BLOCK, |memory: &mut [T]| {
            let banks = Banks { first: memory.as_mut_ptr() };
            let types = |i: usize| call.types_in[i].dtype;
            for (i, _) in access.iter().enumerate().filter(|(i, a)| **a == Access::Splat && shared(*i).is_none()) {
                // SAFETY: one bank for each input, then one for each instruction; they are written one at a time.
                splat(ins[i], &mut unsafe { banks.write(i, types(i), BLOCK.min(range.len())) });
            }
            let mut start = range.start;
            while start < range.end {
                let len = BLOCK.min(range.end - start);
                for (i, a) in access.iter().enumerate() {
                    // SAFETY: as above.
                    let bank = || unsafe { banks.write(i, types(i), len) };
                    if let Some(o) = shared(i) {
                        outs[o].read(start..start + len, &mut bank());
                    } else if let Access::Strided(strides) = a {
                        load(ins[i], &mut bank(), start, &dims, strides);
                    }
                }
                // SAFETY: banks of inputs were written above. Ranges of different tasks do not overlap, and neither do the blocks
                // of one; what shares memory with an output has been read into its bank.
                unsafe {
                    let input = |i: usize| match (loads(i), ins[i]) {
                        (true, _) => banks.read(i, types(i), len),
                        (false, Data::Float(x)) => Data::Float(&x[start..start + len]),
                        (false, x) => Data::Int(&x.int()[start..start + len]),
                    };
                    let result = |k: usize| direct[k].map(|o| outs[o].write(start..start + len));
                    block(program, &kernels, &banks, access.len(), len, input, result);
                }
                for (o, &k) in program.outputs.iter().enumerate().filter(|(_, k)| direct[**k].is_none()) {
                    // SAFETY: as above.
                    let (to, from) = unsafe {
                        let from = banks.read(access.len() + k, program.instrs[k].dtype, len);
                        (outs[o].write(start..start + len), from)
                    };
                    match (to, from) {
                        (DataMut::Float(o), Data::Float(x)) => o.copy_from_slice(x),
                        (DataMut::Int(o), Data::Int(x)) => o.copy_from_slice(x),
                        _ => panic!("infer gives outputs the types of their instructions"),
                    }
                }
                start += len;
            }
        });
    });
}

fn splat<T: Real>(from: Data<T>, to: &mut DataMut<T>) {
    match (from, to) {
        (Data::Float(x), DataMut::Float(y)) => y.fill(x[0]),
        (Data::Int(x), DataMut::Int(y)) => y.fill(x[0]),
        _ => panic!("a bank has the type of its input"),
    }
}

fn load<T: Real>(from: Data<T>, to: &mut DataMut<T>, start: usize, dims: &[usize], strides: &[usize]) {
    match (from, to) {
        (Data::Float(x), DataMut::Float(y)) => load_slices(x, y, start, dims, strides),
        (Data::Int(x), DataMut::Int(y)) => load_slices(x, y, start, dims, strides),
        _ => panic!("a bank has the type of its input"),
    }
}

/// Reads the elements that outputs `start..start + to.len()` see, run by run along the innermost axis.
fn load_slices<T: Copy>(from: &[T], to: &mut [T], start: usize, dims: &[usize], strides: &[usize]) {
    let last = dims.len() - 1;
    let (mut at, mut done) = (start, 0);
    while done < to.len() {
        let inner = at % dims[last];
        let (mut rest, mut offset) = (at / dims[last], inner * strides[last]);
        for d in (0..last).rev() {
            offset += rest % dims[d] * strides[d];
            rest /= dims[d];
        }
        let run = (dims[last] - inner).min(to.len() - done);
        let out = &mut to[done..done + run];
        match strides[last] {
            0 => out.fill(from[offset]),
            1 => out.copy_from_slice(&from[offset..offset + run]),
            s => out.iter_mut().enumerate().for_each(|(i, y)| *y = from[offset + i * s]),
        }
        at += run;
        done += run;
    }
}

/// Checks that `program` is sound over inputs of these types: it refers to what is there, holds elementwise primitives
/// only, and each instruction has the type that its primitive infers.
pub fn check(program: &Program, ins: &[&Type]) -> Result<(), String> {
    for (k, instr) in program.instrs.iter().enumerate() {
        let mut types = Vec::new();
        for a in &instr.args {
            let dtype = match *a {
                Arg::Input(i) => ins.get(i).map(|t| t.dtype),
                Arg::Instr(j) if j < k => Some(program.instrs[j].dtype),
                Arg::Instr(_) => None,
            };
            types.push(Type::new(dtype.ok_or_else(|| format!("t{k} reads what is not there"))?, []));
        }
        let primitive = find(&instr.op).filter(|p| matches!(p.gpu, Gpu::Elementwise(_)));
        let primitive = primitive.ok_or_else(|| format!("'{}' is not elementwise", instr.op))?;
        if let Some(why) = violations(primitive.attrs, &instr.attrs).into_iter().next() {
            return Err(format!("t{k} {}: {why}", instr.op));
        }
        let refs: Vec<&Type> = types.iter().collect();
        let out = (primitive.infer)(&refs, &instr.attrs).map_err(|e| format!("t{k} {}: {e}", instr.op))?;
        if out[0].dtype != instr.dtype {
            return Err(format!("t{k} is {} but {} gives {}", instr.dtype, instr.op, out[0].dtype));
        }
    }
    match program.outputs.iter().all(|&o| o < program.instrs.len()) && !program.outputs.is_empty() {
        true => Ok(()),
        false => Err("the program's outputs are not its instructions".into()),
    }
}

/// A program attribute.
pub fn program_attr(program: Program) -> Attrs {
    Attrs::new().with("program", Attr::Program(Arc::new(program)))
}
