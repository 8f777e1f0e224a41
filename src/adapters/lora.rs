//! `lora`: `B_n A_n x_n`.

use super::{Block, Emitter};

pub fn emit(e: &mut Emitter, block: &Block) -> String {
    let x = e.dropped("lora_dropout", block.x);
    let t = e.project_down("lora_A", block.path, &x);
    e.project_up("lora_B", block.path, &t)
}
