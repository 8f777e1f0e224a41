//! What a burn user gets on the same work: one LoRA training step, timed, or the products of matrices it consists of.
//!
//! ```text
//! burn-peer step minilm|smollm2-135m [backend=flex batch=8 seq=128 rank=8 layers=0 warmup=3 steps=10]
//! burn-peer matmul MxKxN... [backend=flex warmup=3 steps=10]
//! ```
//!
//! Prints one JSON object for each shape. Backends: flex and ndarray (processor), cpu (processor, built with `--features cubecl-cpu`),
//! wgpu (SPIR-V on Vulkan, WGSL when built with `--no-default-features`), which takes the adapter that burn likes best, and with
//! `adapter=software` the software one. The step is forward, backward, AdamW on the adapters; one synchronisation a step.

mod model;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, DeviceKind, Distribution, Int, Tensor, TensorData};
use std::time::Instant;

/// What follows the shape on the command line.
struct Options {
    backend: String,
    adapter: String,
    batch: usize,
    seq: usize,
    rank: usize,
    layers: usize,
    warmup: usize,
    steps: usize,
}

impl Options {
    fn parse(words: &[String]) -> (Vec<&str>, Options) {
        let mut options = Options {
            backend: "flex".into(),
            adapter: "hardware".into(),
            batch: 8,
            seq: 128,
            rank: 8,
            layers: 0,
            warmup: 3,
            steps: 10,
        };
        let mut rest = Vec::new();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                rest.push(word.as_str());
                continue;
            };
            let number = || value.parse().unwrap_or_else(|_| panic!("{key} wants a number, not {value}"));
            match key {
                "backend" => options.backend = value.into(),
                "adapter" => options.adapter = value.into(),
                "batch" => options.batch = number(),
                "seq" => options.seq = number(),
                "rank" => options.rank = number(),
                "layers" => options.layers = number(),
                "warmup" => options.warmup = number(),
                "steps" => options.steps = number(),
                _ => panic!("no option {key}"),
            }
        }
        (rest, options)
    }

    fn device(&self) -> Device {
        let kind = match self.adapter.as_str() {
            "software" => DeviceKind::Cpu,
            _ => DeviceKind::DefaultDevice,
        };
        match self.backend.as_str() {
            "flex" => Device::flex(),
            #[allow(deprecated, reason = "burn's former processor backend, measured beside its successor")]
            "ndarray" => Device::ndarray(),
            #[cfg(feature = "cubecl-cpu")]
            "cpu" => Device::cpu(),
            "wgpu" => Device::wgpu(kind),
            other => panic!("no backend {other} in this build"),
        }
    }
}

/// burn's version, as the manifest pins it.
fn version() -> &'static str {
    let manifest = include_str!("../Cargo.toml");
    let line = manifest.lines().find(|line| line.starts_with("burn = ")).expect("burn is a dependency");
    line.split('"').nth(1).expect("a version").trim_start_matches('=')
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The largest resident size this process had, in MiB; none where the system does not say.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

fn integers<const D: usize>(shape: [usize; D], bound: usize, device: &Device) -> Tensor<D, Int> {
    let count: usize = shape.iter().product();
    let values: Vec<i32> = (0..count).map(|i| (i * 7919 % bound) as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn step(shape: &str, options: &Options) {
    let device = options.device().autodiff();
    device.seed(0);
    let (batch, seq) = (options.batch, options.seq);
    let mut model = model::Model::new(shape, options.layers, options.rank, seq, &device);
    let tokens = integers([batch, seq], 1000, &device);
    let labels = match &model {
        model::Model::Bert(_) => integers([batch], 2, &device),
        model::Model::Llama(_) => integers([batch * seq], 1000, &device),
    };
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
    let (mut times, mut last, mut adapted) = (Vec::new(), 0.0f32, 0);
    for i in 0..options.warmup + options.steps {
        let start = Instant::now();
        let loss = model.loss(tokens.clone(), labels.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        adapted = gradients.len() / 2;
        model = optimizer.step(1e-4, model, gradients);
        last = loss.into_scalar::<f32>();
        device.sync().expect("device");
        if i >= options.warmup {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let median = median(&mut times);
    let result = serde_json::json!({
        "system": format!("burn {} {}", version(), options.backend), "shape": shape, "batch": batch, "seq": seq, "rank": options.rank,
        "targets": adapted, "loss": last, "step_ms": median * 1e3, "tokens_per_s": (batch * seq) as f64 / median,
        "peak_rss_mib": peak_memory(),
    });
    println!("{result}");
}

fn matmul(shape: &str, options: &Options) {
    let sizes: Vec<usize> = shape.split('x').map(|size| size.parse().expect("MxKxN")).collect();
    let &[m, k, n] = sizes.as_slice() else { panic!("{shape} is not MxKxN") };
    let device = options.device();
    let x = Tensor::<2>::random([m, k], Distribution::Normal(0.0, 1.0), &device);
    let w = Tensor::<2>::random([k, n], Distribution::Normal(0.0, 1.0), &device);
    device.sync().expect("device");
    let mut times = Vec::new();
    for i in 0..options.warmup + options.steps {
        let start = Instant::now();
        let y = x.clone().matmul(w.clone());
        device.sync().expect("device");
        if i >= options.warmup {
            times.push(start.elapsed().as_secs_f64());
        }
        drop(y);
    }
    let median = median(&mut times);
    let result = serde_json::json!({
        "system": format!("burn {} {}", version(), options.backend), "product": shape, "ms": median * 1e3,
        "gflops": 2.0 * (m * k * n) as f64 / median / 1e9,
    });
    println!("{result}");
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (rest, options) = Options::parse(&words);
    match rest.as_slice() {
        ["step", shape] => step(shape, &options),
        ["matmul", shapes @ ..] => shapes.iter().for_each(|shape| matmul(shape, &options)),
        _ => panic!("burn-peer step SHAPE | matmul MxKxN.. [key=value]..."),
    }
}
