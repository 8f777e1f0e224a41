//! The included model and data, and how they are trained; used by `quickstart` and `doctor`.

use crate::optim::{self, Hyper};
use crate::train::data::Order;
use crate::train::{Schedule, Settings};

/// A vision transformer trained on upright digits, and digits turned by a quarter; fixtures/quickstart/make.py makes them.
pub const FILES: &[(&str, &[u8])] = &[
    ("model.onnx", include_bytes!("../../fixtures/quickstart/model.onnx")),
    ("train.safetensors", include_bytes!("../../fixtures/quickstart/train.safetensors")),
    ("test.safetensors", include_bytes!("../../fixtures/quickstart/test.safetensors")),
];

pub const BATCH: usize = 25;

/// Fifteen epochs with AdamW.
pub fn settings() -> Settings {
    Settings {
        batch_size: BATCH,
        accumulate: 1,
        epochs: 15,
        max_steps: None,
        optimizer: optim::find("adamw").expect("it is in the table"),
        hyper: Hyper::default(),
        lr: 5e-3,
        schedule: Schedule::Linear,
        warmup_steps: 20,
        clip_norm: 1.0,
        order: Order { shuffle: true, seed: 0 },
        eval_every: None,
        save_every: None,
        mixed: false,
    }
}
