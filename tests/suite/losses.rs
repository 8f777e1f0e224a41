//! Losses against their equations in f64, and their gradients against finite differences.

use reslora_compile::internals::ir::{Builder, Graph, Leaf, Sink, Tensor, Type};
use reslora_compile::internals::lower::loss::{self, Form, UNCOUNTED};
use reslora_compile::internals::ops::host::Buffer;
use reslora_compile::internals::ops::{self, RULES};
use reslora_compile::internals::passes::differentiate;

const ROWS: usize = 5;
const CLASSES: usize = 7;

fn logits() -> Vec<f64> {
    (0..ROWS * CLASSES).map(|i| ((i * 37) % 23) as f64 / 5.0 - 2.0).collect()
}

/// A loss of logits with a share of smoothing, or with weights of classes, and its gradient.
fn graph(name: &str, smoothing: f64, weights: &[f64]) -> Graph {
    let mut b = Builder::new(RULES);
    let x = b.parameter("x", [ROWS, CLASSES]);
    let constant = Tensor::f32([weights.len()], weights.iter().map(|w| *w as f32).collect());
    let weights = (!weights.is_empty()).then(|| b.constant(constant));
    let form = Form { smoothing, weights, ..Form::default() };
    let (sum, _) = loss::attach(&mut b, loss::find(name).expect("a loss"), x, &form, false).expect("it fits");
    b.output("loss", sum, Sink::Fetch);
    differentiate(b.graph, "loss").expect("differentiable")
}

/// The loss and the gradient of each logit.
fn values(graph: &Graph, logits: &[f64], labels: &Buffer<f64>) -> (f64, Vec<f64>) {
    let feed = |leaf: &Leaf, ty: &Type| match leaf {
        Leaf::Parameter(_) => Buffer::Float(logits.to_vec()),
        Leaf::Input(name) if name == "labels" => match labels {
            Buffer::Int(x) => Buffer::Int(x.clone()),
            Buffer::Float(x) => Buffer::Float(x.clone()),
        },
        _ => Buffer::Float(vec![1.0; ty.elements()]),
    };
    let all = ops::interpret::<f64>(graph, &feed);
    let of = |name: &str| match &all[graph.output(name).expect("an output").index()] {
        Buffer::Float(x) => x.clone(),
        Buffer::Int(_) => panic!("a float"),
    };
    (of("loss")[0], of("grad.x"))
}

/// Compares the loss with its equation, and its gradient with slopes of it. Shares are constants of the graph, in f32.
fn check(name: &str, smoothing: f64, labels: Buffer<f64>, equation: impl Fn(&[f64]) -> f64) {
    compare(name, graph(name, smoothing, &[]), labels, equation);
}

/// The same with weights of classes.
fn weighted(name: &str, weights: &[f64], labels: Buffer<f64>, equation: impl Fn(&[f64]) -> f64) {
    compare(name, graph(name, 0.0, weights), labels, equation);
}

fn compare(name: &str, graph: Graph, labels: Buffer<f64>, equation: impl Fn(&[f64]) -> f64) {
    let x = logits();
    let (got, gradient) = values(&graph, &x, &labels);
    assert!((got - equation(&x)).abs() < 1e-6, "{name}: {got}, not {}", equation(&x));
    for (i, g) in gradient.iter().enumerate() {
        let slope = |h: f64| {
            let mut x = x.clone();
            x[i] += h;
            equation(&x)
        };
        let slope = (slope(1e-6) - slope(-1e-6)) / 2e-6;
        assert!((slope - g).abs() < 1e-6, "{name}: the slope of logit {i} is {slope}, not {g}");
    }
}

#[test]
fn smoothed_labels_are_spread_over_all_classes() {
    let labels = [3, 0, -100, 6, 2];
    for smoothing in [0.0, 0.1, 0.9] {
        check("cross-entropy", smoothing, Buffer::Int(labels.to_vec()), |x| {
            let row = |(r, &label): (usize, &i32)| {
                let x = &x[r * CLASSES..(r + 1) * CLASSES];
                let log = x.iter().map(|x| x.exp()).sum::<f64>().ln();
                let target =
                    |c: usize| smoothing / CLASSES as f64 + (1.0 - smoothing) * (c as i32 == label) as i32 as f64;
                if label < 0 { 0.0 } else { (0..CLASSES).map(|c| target(c) * (log - x[c])).sum() }
            };
            labels.iter().enumerate().map(row).sum()
        });
    }
}

#[test]
fn absolute_errors_leave_out_what_does_not_count() {
    let labels: Vec<f64> = (0..ROWS * CLASSES)
        .map(|i| if i % 4 == 1 { f64::from(UNCOUNTED) } else { (i % 9) as f64 / 3.1 - 1.0 })
        .collect();
    check("mae", 0.0, Buffer::Float(labels.clone()), |x| {
        let counted = x.iter().zip(&labels).filter(|(_, l)| **l > -1e29);
        counted.map(|(x, l)| (x - l).abs()).sum()
    });
}

/// As PyTorch: a row's loss is multiplied by the weight of its class, and a yes's part of binary cross-entropy by that of its output.
#[test]
fn classes_count_by_their_weights() {
    let weights: Vec<f64> = (0..CLASSES).map(|c| 0.25 + 0.5 * c as f64).collect();
    let labels = [3, 0, -100, 6, 2];
    weighted("cross-entropy", &weights, Buffer::Int(labels.to_vec()), |x| {
        let row = |(r, &label): (usize, &i32)| {
            let x = &x[r * CLASSES..(r + 1) * CLASSES];
            let log = x.iter().map(|x| x.exp()).sum::<f64>().ln();
            if label < 0 { 0.0 } else { weights[label as usize] * (log - x[label as usize]) }
        };
        labels.iter().enumerate().map(row).sum()
    });
    let of = |i: usize| if i % 5 == 1 { f64::from(UNCOUNTED) } else { [0.0, 1.0, 0.5][i % 3] };
    let labels: Vec<f64> = (0..ROWS * CLASSES).map(of).collect();
    weighted("bce", &weights, Buffer::Float(labels.clone()), |x| {
        let counted = x.iter().zip(&labels).enumerate().filter(|(_, (_, z))| **z > -1e29);
        let one = |(i, (x, z)): (usize, (&f64, &f64))| {
            weights[i % CLASSES] * z * (-x).exp().ln_1p() + (1.0 - z) * x.exp().ln_1p()
        };
        counted.map(one).sum()
    });
}
