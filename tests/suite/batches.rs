//! Dispatches of one kernel that become one: fewer launches, the same results.

use crate::gpu::{available, gpu};
use reslora_compile::internals::device::{Cpu, Device, Run};
use reslora_compile::internals::ir::{Attr, Attrs, Builder, Graph, Sink, Tensor, Type, Value};
use reslora_compile::internals::ops::{Fill, RULES, draw};
use reslora_compile::internals::plan::{self, Layout};

/// The fetched values of a program, and how many launches and steps it took.
fn on(graph: &Graph, device: &mut dyn Device) -> (Vec<Tensor>, usize, usize) {
    let plan = plan::plan(graph.clone(), &Layout::default(), device.limits()).expect("a plan");
    let steps = plan.steps.len();
    let inputs = graph.inputs().enumerate().map(|(i, (name, ty))| (name.to_string(), draw(ty, Fill::Normal, i as u64)));
    let inputs = inputs.collect();
    let id = device.load(plan).expect("loaded");
    device.submit(vec![Run { plan: id, inputs }]).expect("submitted");
    let results = device.collect(true).expect("collected").remove(0).runs.remove(0);
    (results.into_iter().map(|(_, t)| t).collect(), device.launches(id), steps)
}

/// Checks a program on the GPU against the host, element by element.
fn check(graph: &Graph, most_launches: usize, exact: bool) {
    let (want, ..) = on(graph, &mut Cpu::new(None));
    let mut device = gpu();
    let (have, launches, steps) = on(graph, device.as_mut());
    // Kernels with barriers, such as products on hardware, stay alone.
    if device.limits().profile.row_major_products {
        assert!(launches <= most_launches && launches < steps, "{launches} launches of {steps} steps");
    }
    for (h, w) in have.iter().zip(&want) {
        let (h, w) = (h.as_f32().unwrap(), w.as_f32().unwrap());
        for (a, b) in h.iter().zip(w.iter()) {
            assert!(if exact { a == b } else { (a - b).abs() <= 1e-4 * (1.0 + b.abs()) }, "{a} and {b}");
        }
    }
}

fn input(b: &mut Builder, name: &str, shape: &[usize]) -> Value {
    b.input(name, Type::f32(shape.to_vec()))
}

#[test]
fn products_of_several_extents_become_one_launch() {
    if !available() {
        return;
    }
    let mut b = Builder::new(RULES);
    // Operands must share buffers: the results of other operations do.
    let mut all = Vec::new();
    for (i, (m, k, n)) in [(5, 8, 64), (33, 12, 128), (1, 576, 64), (17, 4, 40)].into_iter().enumerate() {
        let (x, w) = (input(&mut b, &format!("x{i}"), &[m, k]), input(&mut b, &format!("w{i}"), &[k, n]));
        let (x, w) = (b.unary("neg", x).unwrap(), b.unary("neg", w).unwrap());
        all.push((x, w));
    }
    for (i, (x, w)) in all.into_iter().enumerate() {
        let y = b.matmul(x, w, false, false).unwrap();
        b.output(format!("y{i}"), y, Sink::Fetch);
    }
    // Inputs have buffers of their own: negations stay apart.
    check(&b.graph, 8 + 2, false);
}

#[test]
fn what_depends_on_another_stays_behind_it() {
    if !available() {
        return;
    }
    let mut b = Builder::new(RULES);
    let x = input(&mut b, "x", &[4, 6]);
    let mut chains = [b.unary("neg", x).unwrap(), b.unary("abs", x).unwrap()];
    // Two chains of transposes and sums: their links alternate, and each link reads the one before.
    for i in 0..5 {
        for (n, c) in chains.iter_mut().enumerate() {
            // Memory that is free again would make chains wait for each other.
            b.output(format!("chain{i}.{n}"), *c, Sink::Fetch);
            let attrs = Attrs::new().with("perm", Attr::Ints(vec![1, 0]));
            let t = b.emit("transpose", &[*c], attrs).unwrap();
            b.output(format!("turned{i}.{n}"), t, Sink::Fetch);
            *c = b.scale(t, 1.5 + i as f64).unwrap();
        }
        let sum = b.add(chains[0], chains[1]).unwrap();
        b.output(format!("sum{i}"), sum, Sink::Fetch);
    }
    check(&b.graph, 2 + 3 * 5, true);
}
