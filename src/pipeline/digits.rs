//! The model and data that come with the program, and how they are trained: what `quickstart` shows and `doctor` tries.

use crate::adapters::Structure;
use crate::inject::Options;
use crate::settings::defaults;
use crate::train::Settings;

/// A vision transformer trained on upright digits, and digits turned by a quarter; fixtures/quickstart/make.py makes them.
pub const FILES: &[(&str, &[u8])] = &[
    ("model.onnx", include_bytes!("../../fixtures/quickstart/model.onnx")),
    ("train.safetensors", include_bytes!("../../fixtures/quickstart/train.safetensors")),
    ("test.safetensors", include_bytes!("../../fixtures/quickstart/test.safetensors")),
];

pub const BATCH: usize = defaults::QUICKSTART_BATCH;

/// Adapters on the attention's queries and values.
pub fn options() -> Options {
    Options {
        targets: vec![],
        exclude: vec![],
        structure: Structure::BlockShortcut,
        pre_num: 2,
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        rslora: false,
        also_train: vec![],
        seed: 0,
        adapter: None,
    }
}

/// AdamW, for a few seconds.
pub fn settings() -> Settings {
    Settings {
        batch_size: BATCH,
        epochs: defaults::QUICKSTART_EPOCHS,
        lr: defaults::QUICKSTART_LEARNING_RATE,
        warmup_steps: defaults::QUICKSTART_WARMUP_STEPS,
        ..Settings::default()
    }
}
