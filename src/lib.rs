//! reslora-compile fine-tunes an existing ONNX model on any GPU, or on the CPU, and returns the same ONNX with better weights.
//!
//! It is a compiler: it reads an ONNX graph, rewrites chosen linear nodes into ResLoRA subgraphs with residual edges
//! (arXiv 2402.18039), lowers and differentiates the graph, trains the adapters on a device, and merges them into plain weights.
//! [`pipeline`] is that sequence in code.

pub mod adapter;
pub mod adapters;
pub mod calibrate;
pub mod cli;
pub mod device;
pub mod file_kind;
pub mod inject;
pub mod ir;
pub mod lower;
pub mod merge;
pub mod onnx;
pub mod ops;
pub mod optim;
pub mod passes;
pub mod pipeline;
pub mod plan;
pub mod settings;
pub mod train;
pub mod verify;
