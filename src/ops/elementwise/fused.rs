//! Several elementwise primitives in one pass over their common shape; the attribute `program` says which.

use crate::ops::engine::prelude::*;

use super::{kernel, program as engine};

pub const PRIMITIVE: Primitive = Primitive {
    name: "fused",
    attrs: &[needs("program", AttrKind::Program)],
    infer: |ins, attrs| {
        let program = attrs.get_program().ok_or("needs a program")?;
        let shape = broadcast(ins)?;
        if shape.len() > strided::MAX_AXES {
            return Err(format!("more than {} axes", strided::MAX_AXES));
        }
        engine::check(program, ins)?;
        Ok(program.outputs.iter().map(|&k| Type::new(program.instrs[k].dtype, shape.clone())).collect())
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Kernel(|c| {
        let program = c.attrs.get_program().expect("checked by infer");
        vec![kernel::dispatch(program, c.types_in, c.types_out, c.traits)]
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let text = "t0:f32=mul(i0,i1); t1:f32=add(t0,i2); t2:f32=tanh(t1); t3:bool=less(t1,i1); \
                    t4:f32=select(t3,t2,t0); return t4,t1";
        let program = crate::ir::Program::parse(text).expect("a sound program");
        let attrs = engine::program_attr(program);
        vec![
            Sample::normal(&[&[2, 3, 5], &[5], &[]]).with(attrs.clone()),
            Sample::normal(&[&[3, 1], &[3, 5], &[5]]).with(attrs),
        ]
    },
};

fn cpu<T: Element>(c: &mut CpuCall<T>) {
    let program = c.attrs.get_program().expect("checked by infer").clone();
    engine::run(&program, c);
}
