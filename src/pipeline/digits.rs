//! The included model and data, and how they are trained; used by `quickstart` and `doctor`.

use crate::settings::defaults;
use crate::train::Settings;

/// A vision transformer trained on upright digits, and digits turned by a quarter; fixtures/quickstart/make.py makes them.
pub const FILES: &[(&str, &[u8])] = &[
    ("model.onnx", include_bytes!("../../fixtures/quickstart/model.onnx")),
    ("train.safetensors", include_bytes!("../../fixtures/quickstart/train.safetensors")),
    ("test.safetensors", include_bytes!("../../fixtures/quickstart/test.safetensors")),
];

pub const BATCH: usize = defaults::QUICKSTART_BATCH;

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
