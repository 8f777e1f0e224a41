//! Padding in the ids of tensors that come without a mask.

use super::{DataError, Dataset, InputSpec, Source};

impl Dataset {
    /// Refuses tensors that no input reads, and ids that look padded where nothing says what padding is.
    pub fn check_tensors(&self, inputs: &[InputSpec]) -> Result<(), DataError> {
        let Source::Tensors { tensors, .. } = &self.source else { return Ok(()) };
        let reads = |name: &str| inputs.iter().any(|i| i.name == name);
        // What an adapter reads, its base does not.
        let own = |name: &str| name == "labels" || self.options.inputs.iter().any(|c| c.name == name);
        if let Some(name) = tensors.keys().find(|n| !own(n) && !reads(n)) {
            let near = inputs
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(name, &a.name).total_cmp(&strsim::jaro_winkler(name, &b.name)));
            let near = near.map_or("it has none".into(), |i| format!("the nearest is '{}'", i.name));
            return Err(self.misfit(format!(
                "it holds '{name}', which no input of the model reads; {near}\n\
                 hint: name each tensor after the graph input it is for, and leave out what the model does not take"
            )));
        }
        let Some(ids) = tensors.get("input_ids").filter(|_| reads("attention_mask")) else { return Ok(()) };
        if tensors.contains_key("attention_mask") || self.pad_id.is_some() {
            return Ok(());
        }
        let width = ids.shape().get(1).copied().unwrap_or(1).max(1);
        match ids.as_i32().and_then(|x| looks_padded(x, width)) {
            Some(id) => Err(self.misfit(format!(
                "rows of 'input_ids' look padded with {id}, but there is no 'attention_mask' and nothing names the \
                 padding token\nhint: add a tensor 'attention_mask' (1 where a token counts, 0 where it is padding), or \
                 put a config.json with pad_token_id beside the model"
            ))),
            None => Ok(()),
        }
    }
}

/// 0 where a row begins or ends in padding, 1 between.
pub fn unpadded(row: &[i32], pad: i32) -> Vec<i32> {
    let first = row.iter().position(|&x| x != pad).unwrap_or(0);
    let last = row.iter().rposition(|&x| x != pad).unwrap_or(row.len().saturating_sub(1));
    (0..row.len()).map(|p| i32::from((first..=last).contains(&p))).collect()
}

/// The id that rows end, or begin, in runs of: two equal ids or more, in runs of different lengths from row to row.
fn looks_padded(ids: &[i32], width: usize) -> Option<i32> {
    let runs = |row: &[i32], back: bool| {
        let edge = if back { row[row.len() - 1] } else { row[0] };
        let same = |x: &&i32| **x == edge;
        let run = if back { row.iter().rev().take_while(same).count() } else { row.iter().take_while(same).count() };
        (edge, run)
    };
    for back in [true, false] {
        let all: Vec<(i32, usize)> = ids.chunks_exact(width).map(|row| runs(row, back)).collect();
        let long: Vec<&(i32, usize)> = all.iter().filter(|r| r.1 >= 2).collect();
        let Some(&&(id, run)) = long.first() else { continue };
        let alike = long.iter().all(|r| r.0 == id);
        let differ = all.iter().any(|r| r.0 != id || r.1 != run);
        if alike && differ && width > 2 {
            return Some(id);
        }
    }
    None
}
