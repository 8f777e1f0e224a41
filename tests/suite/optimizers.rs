//! Every optimiser against its rule written out in f64.

use reslora_compile::internals::device::{Cpu, Device, Run};
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::ops::RULES;
use reslora_compile::internals::optim::{self, Flat, Hyper, OPTIMIZERS, Optimizer};
use reslora_compile::internals::plan::{self, Layout};

const WORDS: usize = 70;
const STEPS: u64 = 6;

/// Numbers between -1 and 1 that have nothing to do with each other.
fn numbers(seed: u64) -> Vec<f32> {
    let hash = |i: u64| (i + 1 + 1000 * seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..WORDS as u64).map(|i| hash(i) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

fn rate(step: u64) -> f64 {
    0.01 / (step + 1) as f64
}

/// A rule for one number: its moments, parameter and gradient, the learning rate, and the step from 1.
type Rule = fn(&Hyper, &mut [f64; 2], f64, f64, f64, i32) -> f64;

fn rule(name: &str) -> Rule {
    match name {
        "adamw" => |h, [m, v], p, g, lr, step| {
            *m = h.beta1 * *m + (1.0 - h.beta1) * g;
            *v = h.beta2 * *v + (1.0 - h.beta2) * g * g;
            let (m, v) = (*m / (1.0 - h.beta1.powi(step)), *v / (1.0 - h.beta2.powi(step)));
            p - lr * h.weight_decay * p - lr * m / (v.sqrt() + h.eps)
        },
        "sgd" => |h, [u, _], p, g, lr, _| {
            *u = h.momentum * *u + g + h.weight_decay * p;
            p - lr * *u
        },
        "lion" => |h, [m, _], p, g, lr, _| {
            let direction = h.beta1 * *m + (1.0 - h.beta1) * g;
            *m = h.beta2 * *m + (1.0 - h.beta2) * g;
            let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
            p - lr * h.weight_decay * p - lr * sign
        },
        other => panic!("'{other}' has no rule here: write it out"),
    }
}

/// Parameters after some steps on the cpu device.
fn trained(optimizer: &Optimizer, hyper: &Hyper) -> Vec<f32> {
    let mut device = Cpu::new(None);
    let moments: Vec<String> = (optimizer.moments)(hyper).iter().map(|m| optim::moment_state(m, "p")).collect();
    let flat = Flat { parameters: "p".into(), gradients: "g".into(), moments, raised: None, words: WORDS };
    for name in ["p", "g"].into_iter().chain(flat.moments.iter().map(String::as_str)) {
        device.reserve(name, WORDS).unwrap();
    }
    let graph = optim::step(RULES, optimizer, hyper, 0.0, false, &[flat], (&optim::precondition::NONE, &[])).unwrap();
    let id = device.load(plan::plan(graph, &Layout::default(), device.limits()).unwrap()).unwrap();
    device.write("p", 0, bytemuck::cast_slice(&numbers(0))).unwrap();
    for step in 0..STEPS {
        device.write("g", 0, bytemuck::cast_slice(&numbers(step + 1))).unwrap();
        let scalars = (optimizer.scalars)(hyper, rate(step), step + 1);
        let inputs = scalars.iter().map(|(n, x)| (optim::scalar_input(n), Tensor::scalar(*x as f32))).collect();
        device.submit(vec![Run { plan: id, inputs }]).unwrap();
        device.collect(true).unwrap();
    }
    device.read("p").unwrap().into_iter().map(f32::from_bits).collect()
}

#[test]
fn every_optimiser_follows_its_rule() {
    for optimizer in OPTIMIZERS {
        let momentum = if optimizer.takes_momentum { 0.9 } else { 0.0 };
        let hyper = Hyper { weight_decay: 0.1, momentum, ..optimizer.hyper };
        let got = trained(optimizer, &hyper);
        let gradients: Vec<Vec<f32>> = (1..=STEPS).map(numbers).collect();
        for (i, (start, got)) in numbers(0).into_iter().zip(got).enumerate() {
            let (mut p, mut moments) = (f64::from(start), [0.0; 2]);
            for (step, g) in gradients.iter().enumerate() {
                let (g, lr) = (f64::from(g[i]), rate(step as u64));
                p = rule(optimizer.name)(&hyper, &mut moments, p, g, lr, step as i32 + 1);
            }
            // A few roundings of numbers up to 1.
            assert!((p - f64::from(got)).abs() < 1e-6, "{}: parameter {i} is {got}, not {p}", optimizer.name);
        }
    }
}
