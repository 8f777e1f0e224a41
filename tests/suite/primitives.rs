//! Every primitive, from the table: gradients against finite differences in f64.

use reslora_compile::internals::ir::verify::verify;
use reslora_compile::internals::ir::{Attr, Attrs, Builder, DType, Graph, Leaf, Sink, Tensor, Type, Value};
use reslora_compile::internals::ops::host::Buffer;
use reslora_compile::internals::ops::{self, Fill, PRIMITIVES, RULES, Sample, Vjp, draw};
use reslora_compile::internals::passes::differentiate;

fn inputs_of(sample: &Sample) -> Vec<Tensor> {
    sample.inputs.iter().enumerate().map(|(i, (ty, fill))| draw(ty, *fill, i as u64 + 1)).collect()
}

/// `Σ w y` over the sample's first output, float inputs being parameters unless they are frozen.
fn weighted(op: &str, sample: &Sample) -> Graph {
    let mut b = Builder::new(RULES);
    let inputs: Vec<Value> = sample
        .inputs
        .iter()
        .enumerate()
        .map(|(i, (ty, fill))| match ty.dtype {
            DType::F32 if !fill.frozen() => b.parameter(&format!("x{i}"), ty.shape.clone()),
            _ => b.input(&format!("x{i}"), ty.clone()),
        })
        .collect();
    let y = b.emit(op, &inputs, sample.attrs.clone()).expect("a sample fits its primitive");
    let ty = b.ty(y).clone();
    let w = b.constant(draw(&ty, Fill::Normal, 99));
    let product = b.mul(y, w).expect("same shape");
    let axes: Vec<usize> = (0..ty.rank()).collect();
    let loss = b.reduce_sum(product, &axes, false).expect("a float sum");
    b.output("loss", loss, Sink::Fetch);
    b.graph
}

fn feed(inputs: &[Vec<f64>], ints: &[Tensor], leaf: &Leaf) -> Buffer<f64> {
    let (Leaf::Parameter(name) | Leaf::Input(name)) = leaf else { panic!("no other leaves here") };
    let i: usize = name[1..].parse().expect("named x0, x1, ..");
    match ints[i].as_i32() {
        Some(x) => Buffer::Int(x.to_vec()),
        None => Buffer::Float(inputs[i].clone()),
    }
}

fn value(out: &Buffer<f64>) -> &[f64] {
    match out {
        Buffer::Float(x) => x,
        Buffer::Int(_) => panic!("a float"),
    }
}

#[test]
fn gradients_match_finite_differences() {
    let mut checked = 0;
    for p in PRIMITIVES.iter().filter(|p| matches!(p.vjp, Vjp::Emit(_))) {
        for (s, sample) in (p.samples)().iter().enumerate() {
            let tensors = inputs_of(sample);
            if !tensors.iter().any(|t| t.dtype() == DType::F32) || sample.inputs[0].0.dtype == DType::I32 {
                continue;
            }
            let floats: Vec<Vec<f64>> =
                tensors.iter().map(|t| t.as_f32().unwrap_or(&[]).iter().map(|&x| x as f64).collect()).collect();
            let graph = weighted(p.name, sample);
            let graph = differentiate(graph, "loss").expect("differentiable");
            reslora_compile::internals::passes::check(&graph, "differentiate").expect("sound");
            let at = |x: &[Vec<f64>]| ops::interpret::<f64>(&graph, &|leaf, _| feed(x, &tensors, leaf));
            let base = at(&floats);
            let loss_at = |x: &[Vec<f64>]| value(&at(x)[graph.output("loss").unwrap().index()])[0];
            for i in 0..floats.len() {
                let Some(g) = graph.output(&format!("grad.x{i}")) else {
                    let (ty, fill) = &sample.inputs[i];
                    assert!(
                        ty.dtype != DType::F32 || fill.frozen(),
                        "{} sample {s}: no gradient reaches input {i}",
                        p.name
                    );
                    continue;
                };
                let g = value(&base[g.index()]);
                for e in (0..floats[i].len()).step_by(1 + floats[i].len() / 24) {
                    let h = 1e-5;
                    let mut x = floats.clone();
                    x[i][e] += h;
                    let up = loss_at(&x);
                    x[i][e] -= 2.0 * h;
                    let slope = (up - loss_at(&x)) / (2.0 * h);
                    // Central differences in f64 with h = 1e-5 are good to about 1e-10 relative to the loss.
                    let tolerance = 1e-6 * (1.0 + slope.abs().max(g[e].abs()));
                    assert!(
                        (slope - g[e]).abs() < tolerance,
                        "{} sample {s} input {i}[{e}]: {slope} but {}",
                        p.name,
                        g[e]
                    );
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 500, "only {checked} slopes were compared");
}

/// A graph of one `gather`, whose attributes are these.
fn with_attrs(attrs: Attrs) -> Result<(), Vec<String>> {
    let mut b = Builder::new(RULES);
    let (x, index) = (b.input("x", Type::f32([4, 3])), b.input("index", Type::i32([2])));
    let y = b.gather(x, index, 0).expect("rows of a table");
    b.output("y", y, Sink::Fetch);
    b.graph.nodes[0].attrs = attrs;
    verify(&b.graph, &RULES)
}

#[test]
fn attributes_are_those_that_the_primitive_has() {
    let axis = || Attrs::new().with("axis", Attr::Int(0));
    assert_eq!(with_attrs(axis()), Ok(()));
    for (attrs, why) in [
        (Attrs::new(), "needs attribute 'axis'"),
        (axis().with("axes", Attr::Int(0)), "has no attribute 'axes'"),
        (axis().with("axis", Attr::Bool(true)), "attribute 'axis' is of type Bool, not Int"),
    ] {
        assert_eq!(with_attrs(attrs), Err(vec![format!("node 0 gather: {why}")]));
    }
}

#[test]
fn samples_have_the_attributes_that_their_primitives_do() {
    for p in PRIMITIVES.iter() {
        for sample in (p.samples)() {
            assert_eq!((RULES.attrs)(p.name, &sample.attrs), Vec::<String>::new(), "{}", p.name);
        }
    }
}
