//! `middle-shortcut`: LoRA whose block also reads what the blocks before it projected, `y_n + s B_n Σ_k A_{n-k} x_{n-k}`.

use super::{Entry, Residual, lora};

pub const ENTRY: Entry = Entry {
    name: "middle-shortcut",
    aliases: &["ms"],
    help: "y_n + s B_n (A_n x_n + A_{n-1} x_{n-1} + ..)",
    residual: Some(Residual::MiddleShortcut),
    residuals: &[],
    ..lora::ENTRY
};
