//! `block-shortcut`: `(Σ_k B_{n-k} A_{n-k}) x_n`. Dropout draws a mask for each term.

use super::{Block, Emitter};

pub fn emit(e: &mut Emitter, block: &Block) -> String {
    let own = term(e, "", block.path, block.x);
    let ancestors = block.ancestors.iter().enumerate();
    ancestors.fold(own, |sum, (k, (path, _))| {
        let more = term(e, &format!(".back{}", k + 1), path, block.x);
        e.node(&format!("residual{}", k + 1), "Add", &[&sum, &more])
    })
}

fn term(e: &mut Emitter, which: &str, path: &str, x: &str) -> String {
    let x = e.dropped(&format!("lora_dropout{which}"), x);
    let t = e.project_down(&format!("lora_A{which}"), path, &x);
    e.project_up(&format!("lora_B{which}"), path, &t)
}
