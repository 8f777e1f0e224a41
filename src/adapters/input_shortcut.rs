//! `input-shortcut`: LoRA whose block also reads the input of the block before it, `y_n + s B_n A_n (x_n + x_{n-1})`.

use super::{Entry, Residual, lora};

pub const ENTRY: Entry = Entry {
    name: "input-shortcut",
    aliases: &["is"],
    help: "y_n + s B_n A_n (x_n + x_{n-1})",
    residual: Some(Residual::InputShortcut),
    residuals: &[],
    ..lora::ENTRY
};
