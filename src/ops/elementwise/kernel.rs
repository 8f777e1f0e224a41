//! The WGSL kernel of an elementwise program, and its instructions as they stand in any kernel.

use super::instructions::find;
use super::program::{Access, accesses};
use crate::ir::{Arg, DType, Instr, Program, Type};
use crate::ops::engine::assemble;
use crate::ops::engine::primitive::{Binding, Dispatch, Gpu, GpuTraits, Shader};
use crate::ops::engine::strided::{grid, padded};
use std::borrow::Cow;

const KERNEL: &str = include_str!("../../../shaders/elementwise/elementwise.wgsl");
const WORKGROUP: usize = 256;

/// The dispatch that runs `program` on a device.
pub fn dispatch(program: &Program, types_in: &[Type], types_out: &[Type], traits: GpuTraits) -> Dispatch {
    let n = types_out[0].elements();
    let (dims, access) = accesses(&types_out[0].shape, types_in);
    let (workgroups, width) = grid(n, WORKGROUP, traits);
    let mut params = vec![n as u32, width, 0, 0];
    params.extend(padded(dims.iter().map(|&d| d as u32), 1));
    for a in &access {
        if let Access::Strided(s) = a {
            params.extend(padded(s.iter().map(|&s| s as u32), 0));
        }
    }
    let bindings = (0..types_in.len()).map(Binding::Input).chain((0..types_out.len()).map(Binding::Output)).collect();
    let source = source(program, types_in, types_out, &access, dims.len());
    let shader = Shader { name: "elementwise", source: Cow::Owned(source) };
    Dispatch { shader, constants: vec![], bindings, params, workgroups }
}

/// Fills the kernel's three slots: strides in the parameters, bindings, and the body.
fn source(program: &Program, types_in: &[Type], types_out: &[Type], access: &[Access], axes: usize) -> String {
    let strided: Vec<usize> = (0..access.len()).filter(|&i| matches!(access[i], Access::Strided(_))).collect();
    let fields: String = strided.iter().map(|i| format!("    s{i}: array<vec4<u32>, 2>,\n")).collect();

    let mut bindings = String::new();
    for (i, t) in types_in.iter().enumerate() {
        let at = i + 1;
        bindings += &format!("@group(0) @binding({at}) var<storage, read> i{i}: array<{}>;\n", t.dtype.wgsl());
    }
    for (o, t) in types_out.iter().enumerate() {
        let at = types_in.len() + o + 1;
        bindings += &format!("@group(0) @binding({at}) var<storage, read_write> o{o}: array<{}>;\n", t.dtype.wgsl());
    }

    let mut body = String::new();
    if !strided.is_empty() {
        body += "    var rest = i;\n";
        for i in &strided {
            body += &format!("    var at{i} = 0u;\n");
        }
        for d in (8 - axes..8).rev() {
            let (v, c) = (d / 4, d % 4);
            let step = if d == 8 - axes { "rest".to_string() } else { format!("rest % params.dims[{v}][{c}]") };
            body += &format!("    let c{d} = {step};\n");
            if d > 8 - axes {
                body += &format!("    rest = rest / params.dims[{v}][{c}];\n");
            }
            for i in &strided {
                body += &format!("    at{i} = at{i} + c{d} * params.s{i}[{v}][{c}];\n");
            }
        }
    }
    for (i, a) in access.iter().enumerate() {
        let index = match a {
            Access::Full => "i".to_string(),
            Access::Splat => "0u".to_string(),
            Access::Strided(_) => format!("at{i}"),
        };
        body += &format!("    let x{i} = i{i}[{index}];\n");
    }
    let dtypes: Vec<DType> = types_in.iter().map(|t| t.dtype).collect();
    body += &lines(program, &dtypes);
    for (o, k) in program.outputs.iter().enumerate() {
        body += &format!("    o{o}[i] = t{k};\n");
    }
    assemble::fill(KERNEL, &[("strides", &fields), ("bindings", &bindings), ("body", &body)])
}

/// One line for each instruction: it defines `t0`, `t1`, .. and reads inputs of these types as `x0`, `x1`, ..
pub fn lines(program: &Program, dtypes: &[DType]) -> String {
    let line = |(k, instr)| format!("    let t{k} = {};\n", expression(program, dtypes, instr));
    program.instrs.iter().enumerate().map(line).collect()
}

fn expression(program: &Program, inputs: &[DType], instr: &Instr) -> String {
    let Some(Gpu::Elementwise(write)) = find(&instr.op).map(|p| &p.gpu) else {
        panic!("programs hold elementwise primitives only, not '{}'", instr.op)
    };
    let dtypes: Vec<DType> = instr
        .args
        .iter()
        .map(|a| match *a {
            Arg::Input(i) => inputs[i],
            Arg::Instr(k) => program.instrs[k].dtype,
        })
        .collect();
    let mut text = write(&instr.attrs, &dtypes).into_owned();
    for (n, a) in instr.args.iter().enumerate() {
        let name = match a {
            Arg::Input(i) => format!("x{i}"),
            Arg::Instr(k) => format!("t{k}"),
        };
        text = text.replace(&format!("${n}"), &name);
    }
    text
}
