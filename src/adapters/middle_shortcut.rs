//! `middle-shortcut`: `B_n Σ_k A_{n-k} x_{n-k}`. Each `A_k D(x_k)` is computed once, by its own block, and read by later
//! ones.

use super::{Block, Emitter};

pub fn emit(e: &mut Emitter, block: &Block) -> String {
    let x = e.dropped("lora_dropout", block.x);
    let own = e.project_down("lora_A", block.path, &x);
    let ancestors = block.ancestors.iter().enumerate();
    let t = ancestors.fold(own, |sum, (k, (path, _))| {
        e.node(&format!("residual{}", k + 1), "Add", &[&sum, &format!("{path}.lora_A")])
    });
    e.project_up("lora_B", block.path, &t)
}
