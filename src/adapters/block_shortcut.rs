//! `block-shortcut`: LoRA whose block also applies the factors of the blocks before it, `y_n + s Σ_k B_{n-k} A_{n-k} x_n`.

use super::{Entry, Residual, lora};

pub const ENTRY: Entry = Entry {
    name: "block-shortcut",
    aliases: &["bs"],
    help: "y_n + s (B_n A_n + B_{n-1} A_{n-1} + ..) x_n",
    residual: Some(Residual::BlockShortcut),
    residuals: &[],
    ..lora::ENTRY
};
