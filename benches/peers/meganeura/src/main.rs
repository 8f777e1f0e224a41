//! What a meganeura user gets on SmolLM2-135M's shape: one training step of a sequence, timed.
//!
//! ```text
//! meganeura-peer all|lora [seq=128 rank=8 layers=30 warmup=3 steps=10]
//! ```
//!
//! `all` is the step of the crate's own example (`smollm2_train_bench`): every weight is trained, by plain gradient descent. `lora`
//! freezes the weights through `stop_gradient`, puts factors of rank 8 on queries and values and trains those by AdamW. The Vulkan
//! adapter is the first that the crate finds; MEGANEURA_DEVICE_ID names another. Prints one JSON object.

use meganeura::models::smollm2::{SmolLM2Config, build_training_graph};
use meganeura::{Graph, NodeId, SessionConfig};
use std::time::Instant;

/// A weight that no gradient is computed for.
fn frozen(graph: &mut Graph, name: &str, shape: &[usize]) -> NodeId {
    let weight = graph.parameter(name, shape);
    graph.stop_gradient(weight)
}

/// `h W + h A B`, W frozen; the scale is left to the learning rate.
fn adapted(graph: &mut Graph, h: NodeId, name: &str, shape: [usize; 2], rank: usize) -> NodeId {
    let weight = frozen(graph, name, &shape);
    let a = graph.parameter(&format!("{name}.a"), &[shape[0], rank]);
    let b = graph.parameter(&format!("{name}.b"), &[rank, shape[1]]);
    let base = graph.matmul(h, weight);
    let reduced = graph.matmul(h, a);
    let branch = graph.matmul(reduced, b);
    graph.add(base, branch)
}

/// The crate's training graph of SmolLM2 with its weights frozen and factors on queries and values. Gate and up projection are one
/// weight, as its optimizer makes them where they are trained.
fn lora_graph(config: &SmolLM2Config, seq: usize, rank: usize) -> Graph {
    let mut graph = Graph::new();
    let g = &mut graph;
    let (width, keys, inner) = (config.hidden_size, config.kv_dim(), config.intermediate_size);
    let (eps, theta, head) = (config.rms_norm_eps, config.rope_theta, config.head_dim());
    let tokens = g.input_u32("token_ids", &[seq]);
    let words = frozen(g, "embed", &[config.vocab_size, width]);
    let mut x = g.embedding(tokens, words);
    for i in 0..config.num_hidden_layers {
        let name = |part: &str| format!("layers.{i}.{part}");
        let gain = frozen(g, &name("attention_norm"), &[width]);
        let h = g.rms_norm(x, gain, eps);
        let q = adapted(g, h, &name("q"), [width, width], rank);
        // The crate's fused gradient of attention exists only where keys, too, have one; below the first layer nothing else gives it.
        let k = match i {
            0 => adapted(g, h, &name("k"), [width, keys], rank),
            _ => {
                let wk = frozen(g, &name("k"), &[width, keys]);
                g.matmul(h, wk)
            }
        };
        let v = adapted(g, h, &name("v"), [width, keys], rank);
        let (q, k) = (g.rope(q, theta, head), g.rope(k, theta, head));
        let attended = g.causal_attention(q, k, v, config.num_attention_heads, config.num_key_value_heads, head);
        let wo = frozen(g, &name("o"), &[width, width]);
        let output = g.matmul(attended, wo);
        x = g.add(x, output);
        let gain = frozen(g, &name("norm"), &[width]);
        let h = g.rms_norm(x, gain, eps);
        let gate_up = frozen(g, &name("gate_up"), &[width, 2 * inner]);
        let both = g.matmul(h, gate_up);
        let gated = g.swiglu_concat(both);
        let down = frozen(g, &name("down"), &[inner, width]);
        let output = g.matmul(gated, down);
        x = g.add(x, output);
    }
    let gain = frozen(g, "norm", &[width]);
    let x = g.rms_norm(x, gain, eps);
    let logits = g.matmul_bt(x, words);
    let labels = g.input("labels", &[seq, config.vocab_size]);
    let loss = g.cross_entropy_loss(logits, labels);
    graph.set_outputs(vec![loss]);
    graph
}

/// The largest resident size this process had, in MiB; none where the system does not say.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// meganeura's version, as the manifest pins it.
fn version() -> &'static str {
    let manifest = include_str!("../Cargo.toml");
    let line = manifest.lines().find(|line| line.starts_with("meganeura = ")).expect("meganeura is a dependency");
    line.split('"').nth(1).expect("a version").trim_start_matches('=')
}

fn main() {
    let (mut mode, mut seq, mut rank, mut warmup, mut steps) = ("all".to_string(), 128, 8, 3, 10);
    let mut config = SmolLM2Config::smollm2_135m();
    for word in std::env::args().skip(1) {
        let Some((key, value)) = word.split_once('=') else {
            mode = word;
            continue;
        };
        let number: usize = value.parse().unwrap_or_else(|_| panic!("{key} wants a number, not {value}"));
        match key {
            "seq" => seq = number,
            "rank" => rank = number,
            "layers" => config.num_hidden_layers = number,
            "warmup" => warmup = number,
            "steps" => steps = number,
            _ => panic!("no option {key}"),
        }
    }
    let graph = match mode.as_str() {
        "all" => build_training_graph(&config, seq),
        "lora" => lora_graph(&config, seq, rank),
        other => panic!("no mode {other}"),
    };
    let (mut session, _) = meganeura::build(&graph, SessionConfig::from_env());
    for (name, buffer) in session.plan().param_buffers.clone() {
        let count = session.plan().buffers[buffer.0 as usize] / 4;
        let norm = name.ends_with("norm") || name.ends_with("norm.weight");
        let value = |i: usize| match (norm, name.ends_with(".b")) {
            (true, _) => 1.0,
            (_, true) => 0.0,
            _ => (i as f32 * 0.7).sin() * 0.02,
        };
        session.set_parameter(&name, &(0..count).map(value).collect::<Vec<f32>>());
    }
    let tokens: Vec<u32> = (0..seq as u32).map(|i| i * 7919 % 1000).collect();
    let mut labels = vec![0.0; seq * config.vocab_size];
    for (row, token) in tokens.iter().enumerate() {
        labels[row * config.vocab_size + *token as usize] = 1.0;
    }
    session.set_input_u32("token_ids", &tokens);
    session.set_input("labels", &labels);
    if mode == "lora" {
        session.set_adam(1e-4, 0.9, 0.999, 1e-8);
        session.set_weight_decay(0.01);
    } else {
        session.set_learning_rate(1e-5);
    }
    let mut times = Vec::new();
    for i in 0..warmup + steps {
        let start = Instant::now();
        session.step();
        session.wait();
        if i >= warmup {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let result = serde_json::json!({
        "system": format!("meganeura {} {mode}", version()), "device": session.device_information().device_name, "shape": "smollm2-135m",
        "batch": 1, "seq": seq, "targets": session.plan().param_grad_pairs.len(), "dispatches": session.plan().dispatches.len(),
        "loss": session.read_loss(), "step_ms": median * 1e3, "tokens_per_s": seq as f64 / median, "peak_rss_mib": peak_memory(),
    });
    println!("{result}");
}
