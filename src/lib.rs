//! reslora-compile fine-tunes an existing ONNX model on any GPU, or on the CPU, and returns the same ONNX with better weights.
//!
//! It is a compiler: it reads an ONNX graph, rewrites chosen linear nodes into ResLoRA subgraphs with residual edges
//! (arXiv 2402.18039), lowers and differentiates the graph, trains the adapters on a device, and merges them into plain weights.
//! The `reslora-compile` program has a subcommand for each step. The library has a function for each:
//!
//! | step | function |
//! |---|---|
//! | read and write a model | [`read`], [`write`] |
//! | put adapters into it | [`inject`] |
//! | read data, open a device | [`read_data`], [`open_device`] |
//! | train the adapters | [`train`] |
//! | measure a model | [`evaluate`] |
//! | merge the adapters into the weights | [`merge`] |
//! | compare two files with tract | [`verify`] |
//!
//! [`adapters`] has the table of adapters, and [`adapters::register`] adds your own to it.
//!
//! This trains a small vision transformer, which recognises upright digits, on digits rotated by 90°:
//!
//! ```
//! use reslora_compile::{DataConfig, InjectOptions, MergeRequest, TrainConfig, TrainRequest, VerifyRequest};
//!
//! let dir = std::env::temp_dir().join(format!("reslora-example-{}", std::process::id()));
//! std::fs::create_dir_all(&dir)?;
//! let how = DataConfig { batch_size: 25, device: "cpu".into(), ..DataConfig::default() };
//! let config = TrainConfig { how, max_steps: Some(20), lr: 5e-3, ..TrainConfig::default() };
//! let mut device = reslora_compile::open_device(&config)?;
//!
//! let base = reslora_compile::read("fixtures/quickstart/model.onnx")?;
//! let train = reslora_compile::read_data("fixtures/quickstart/train.safetensors", &base, &config.how)?;
//! let test = reslora_compile::read_data("fixtures/quickstart/test.safetensors", &base, &config.how)?;
//!
//! // Adapters of rank 4 at the attention's queries and values.
//! let injected = reslora_compile::inject(&base, &InjectOptions { rank: 4, ..InjectOptions::default() })?.model;
//! reslora_compile::write(&injected, dir.join("injected.onnx"))?;
//!
//! let run = dir.join("run");
//! let request = TrainRequest { model: &injected, data: &train, eval: None, config: &config, dir: &run };
//! let adapter = reslora_compile::train(&request, &mut device, &mut ())?.adapter;
//! let before = reslora_compile::evaluate(&base, None, &test, &config.how, &mut device)?;
//! let after = reslora_compile::evaluate(&injected, Some(&adapter), &test, &config.how, &mut device)?;
//! assert!(after.loss < before.loss);
//!
//! let request = MergeRequest { data: Some(&test), ..MergeRequest::new(&injected, &adapter, &config) };
//! let merged = reslora_compile::merge(&request, &mut device)?;
//! assert!(!merged.above_tolerance && merged.differences[0].relative < 1e-4);
//! reslora_compile::write(&merged.model, dir.join("merged.onnx"))?;
//!
//! // The merged file computes what the injected file does with the adapter. tract, another engine, says so.
//! let verified = reslora_compile::verify(&VerifyRequest {
//!     first: &dir.join("injected.onnx"),
//!     second: &dir.join("merged.onnx"),
//!     adapter: Some(&adapter),
//!     data: Some(&test),
//!     config: &config.how,
//! })?;
//! assert_eq!(verified.engine, "tract");
//! assert!(verified.outputs.iter().all(|output| !output.exceeds(1e-4)));
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Types of other crates that the interface shows are at [`ndarray`], [`rand_chacha`], [`regex`] and [`serde_json`].

// With the feature, everything is public for this crate's own tests, which use more of it than the program does.
#![cfg_attr(not(feature = "internals"), deny(missing_docs), allow(dead_code, unused_imports))]

mod adapter;
pub mod adapters;
mod api;
mod calibrate;
mod cli;
mod device;
mod file_kind;
mod inject;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod ir;
mod lower;
mod merge;
mod onnx;
mod ops;
mod optim;
mod passes;
mod pipeline;
mod plan;
mod settings;
mod train;
mod verify;

pub use adapter::{Adapter, Norms};
pub use api::{
    Dataset, Device, Error, Injected, MergeRequest, Merged, Model, TrainRequest, VerifyRequest, evaluate, inject,
    merge, open_device, read, read_adapter, read_data, train, verify, with_directions, with_originals, write,
    write_adapter,
};
pub use cli::main;
pub use inject::{Biases, Head, Options as InjectOptions, Pooling, Report as InjectReport, Selector};
pub use merge::{LayerReport, Report as MergeReport};
pub use pipeline::{DeviceInfo, Evaluation, Metric, Polished, Verification, list_devices};
pub use settings::{DataConfig, TrainConfig};
pub use train::metrics::{EvalMetrics, StepMetrics};
pub use train::scores::Scores;
pub use train::{Observer, Outcome};
pub use verify::Difference;
pub use {ndarray, rand_chacha, regex, serde_json};
