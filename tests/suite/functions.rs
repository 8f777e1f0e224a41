//! The functions that kernels have in place of WGSL's own, on every adapter that is there: densely, against f64.

use crate::gpu::available;
use reslora_compile::internals::device::{Device, Gpu, GpuOptions, Run, list_gpus};
use reslora_compile::internals::ir::{Builder, Sink, Tensor, Value};
use reslora_compile::internals::ops::RULES;
use reslora_compile::internals::plan::{self, Layout};

/// A primitive of one operand over many arguments.
fn compute(gpu: &mut Gpu, op: &str, operands: &[&[f32]]) -> Vec<f32> {
    let mut b = Builder::new(RULES);
    let n = operands[0].len();
    let inputs: Vec<Value> = (0..operands.len())
        .map(|i| b.input(&format!("x{i}"), reslora_compile::internals::ir::Type::f32([n])))
        .collect();
    let y = b.emit(op, &inputs, Default::default()).unwrap();
    b.output("y", y, Sink::Fetch);
    let id = gpu.load(plan::plan(b.graph, &Layout::default(), gpu.limits()).unwrap()).unwrap();
    let named = operands.iter().enumerate().map(|(i, x)| (format!("x{i}"), Tensor::f32([n], x.to_vec()))).collect();
    gpu.submit(vec![Run { plan: id, inputs: named }]).unwrap();
    let (_, y) = gpu.collect(true).unwrap().remove(0).runs.remove(0).remove(0);
    y.as_f32().unwrap().to_vec()
}

/// Numbers from `low` to `high`, evenly, and as many spread over the exponents between the smallest and the largest of them.
fn arguments(low: f32, high: f32) -> Vec<f32> {
    const N: usize = 100_000;
    let even = (0..=N).map(|i| (f64::from(low) + (f64::from(high) - f64::from(low)) * i as f64 / N as f64) as f32);
    let top = low.abs().max(high.abs());
    let spread = (0..N).map(|i| top * 2f32.powf(-40.0 * i as f32 / N as f32) * if i % 2 == 0 { 1.0 } else { -1.0 });
    even.chain(spread).filter(|x| (low..=high).contains(x)).collect()
}

/// The distance of a result in units in the last place of the exact one, which count from `floor` up.
fn ulps(have: f32, want: f64, floor: f64) -> f64 {
    if f64::from(have) == want || have.is_nan() && want.is_nan() {
        return 0.0;
    }
    // What is subnormal may be flushed.
    if want.abs() < f64::from(f32::MIN_POSITIVE) && have.abs() < f32::MIN_POSITIVE {
        return 0.0;
    }
    if want.abs() > f64::from(f32::MAX) {
        return if have.is_infinite() { 0.0 } else { f64::INFINITY };
    }
    let size = want.abs().max(floor).max(f64::from(f32::MIN_POSITIVE));
    (f64::from(have) - want).abs() / 2f64.powi(size.log2().floor() as i32 - 23)
}

/// A function, its exact value, the range of its arguments, what units count from, and the most units it may be off.
type Case = (&'static str, fn(f64) -> f64, f32, f32, f64, f64);

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

const CASES: &[Case] = &[
    ("sin", f64::sin, -1e6, 1e6, 1.0, 2.0),
    ("sin", f64::sin, -8.0, 8.0, 0.1, 2.0),
    ("sin", f64::sin, 1e6, 3e38, 1.0, 2.0),
    ("cos", f64::cos, -1e6, 1e6, 1.0, 2.0),
    ("cos", f64::cos, -3e38, -1e6, 1.0, 2.0),
    ("atan", f64::atan, -1e6, 1e6, 0.0, 4.0),
    ("atan", f64::atan, -4.0, 4.0, 0.0, 4.0),
    ("exp", f64::exp, -1e6, 1e6, 0.0, 3.0),
    ("exp", f64::exp, -104.0, 89.0, 0.0, 3.0),
    ("tanh", f64::tanh, -1e6, 1e6, 0.0, 7.0),
    ("tanh", f64::tanh, -10.0, 10.0, 0.0, 7.0),
    ("sigmoid", sigmoid, -1e6, 1e6, 0.0, 6.0),
    ("sigmoid", sigmoid, -90.0, 30.0, 0.0, 6.0),
    ("log", f64::ln, 0.0, 1e6, 0.0, 3.0),
    ("log", f64::ln, 0.5, 2.0, 0.0, 3.0),
    ("log", f64::ln, 0.0, 1e-37, 0.0, 3.0),
    ("erf", libm::erf, -1e6, 1e6, 0.0, 12.0),
    ("erf", libm::erf, -5.0, 5.0, 0.0, 12.0),
    ("sqrt", f64::sqrt, 0.0, 1e6, 0.0, 3.0),
    ("sqrt", f64::sqrt, 0.0, 1e-37, 0.0, 3.0),
    ("reciprocal", f64::recip, -1e6, 1e6, 0.0, 3.0),
    ("reciprocal", f64::recip, 1e-39, 1e-36, 0.0, 3.0),
    ("round", f64::round_ties_even, -1e6, 1e6, 0.0, 0.0),
];

#[test]
fn functions_keep_to_their_errors_on_every_adapter() {
    if !available() {
        return;
    }
    let mut failed = Vec::new();
    for (index, info) in list_gpus().iter().enumerate() {
        let mut gpu = Gpu::open_with(Some(index), &GpuOptions::default()).unwrap();
        for &(op, exact, low, high, floor, most) in CASES {
            let x = arguments(low, high);
            let y = compute(&mut gpu, op, &[&x]);
            let (mut worst, mut at) = (0.0, 0.0);
            for (&x, &y) in x.iter().zip(&y) {
                let off = ulps(y, exact(f64::from(x)), floor);
                if off > worst || off.is_nan() {
                    (worst, at) = (if off.is_nan() { f64::INFINITY } else { off }, x);
                }
            }
            println!("{}: {op} from {low:e} to {high:e}: {worst:.2} ulp at {at:e}", info.name);
            if worst > most {
                failed.push(format!("{}: {op} is {worst:.1} ulp off at {at:e}, more than {most}", info.name));
            }
        }
        failed.extend(of_two(&mut gpu, &info.name));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Functions of two operands: division, remainder and powers.
fn of_two(gpu: &mut Gpu, name: &str) -> Vec<String> {
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for i in 0..400 {
        for k in 0..400 {
            x.push(2f32.powf(i as f32 * 0.6 - 120.0) * 1.37);
            y.push(2f32.powf(k as f32 * 0.6 - 120.0) * if k % 2 == 0 { 1.11 } else { -1.23 });
        }
    }
    let mut failed = Vec::new();
    let mut check = |op: &str, x: &[f32], y: &[f32], exact: fn(f64, f64) -> f64, most: &dyn Fn(f64, f64) -> f64| {
        let z = compute(gpu, op, &[x, y]);
        let mut worst = (0.0, String::new());
        for ((&x, &y), &z) in x.iter().zip(y).zip(&z) {
            let want = exact(f64::from(x), f64::from(y));
            let off = ulps(z, want, 0.0);
            if off > worst.0 || off.is_nan() {
                worst.0 = off;
            }
            if (off.is_nan() || off > most(f64::from(x), f64::from(y))) && worst.1.is_empty() {
                worst.1 = format!("{name}: {op}({x:e}, {y:e}) is {z:e}, not {want:e}: {off:.1} ulp");
            }
        }
        println!("{name}: {op}: {:.2} ulp", worst.0);
        failed.extend(Some(worst.1).filter(|w| !w.is_empty()));
    };
    check("div", &x, &y, |x, y| x / y, &|_, _| 3.0);
    check("modulo", &x, &y, |x, y| x % y, &|_, _| 0.0);
    let (mut base, mut power) = (Vec::new(), Vec::new());
    for i in 0..400 {
        for k in -200..=200 {
            base.push(2f32.powf((i as f32 - 200.0) * 0.11) * 1.003);
            power.push(k as f32 * 0.37);
        }
    }
    check("pow", &base, &power, f64::powf, &|x, y| {
        let m = 2f64.powf(x.log2() - x.log2().round());
        8.0 + 4.0 * (y * m.ln()).abs()
    });
    let (near, whole): (Vec<f32>, Vec<f32>) = (-200..=200).map(|k| (-1.25, k as f32)).unzip();
    check("pow", &near, &whole, f64::powf, &|_, y| 8.0 + 4.0 * (y * 0.2232).abs());
    failed
}
