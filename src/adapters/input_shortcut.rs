//! `input-shortcut`: `B_n A_n (x_n + x_{n-1})`; the first block of a chain adds its own input. Dropout drops the sum.

use super::{Block, Emitter};

pub fn emit(e: &mut Emitter, block: &Block) -> String {
    let before = block.ancestors.first().map_or(block.x, |(_, x)| x);
    let sum = e.node("residual", "Add", &[block.x, before]);
    let x = e.dropped("lora_dropout", &sum);
    let t = e.project_down("lora_A", block.path, &x);
    e.project_up("lora_B", block.path, &t)
}
