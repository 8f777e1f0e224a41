//! Rows for an encoder and a decoder: what the encoder reads, and what the decoder is to write of it.

use super::examples::Sequence;
use super::made::{Made, Why, string};
use super::rows::{self, Row};
use super::tokenizer::Text;
use super::{TextExample, special};
use std::path::Path;

/// The token that a decoder begins with, as `config.json` or `generation_config.json` in a folder says.
pub fn start(folder: Option<&Path>) -> Result<i32, String> {
    for name in ["config.json", "generation_config.json"] {
        let config = folder.map_or(Ok(None), |folder| special::object(&folder.join(name)))?;
        let id = config.as_ref().and_then(|c| c.get("decoder_start_token_id")?.as_i64());
        if let Some(id) = id.and_then(|id| i32::try_from(id).ok()) {
            return Ok(id);
        }
    }
    Err("the model has a decoder, and nothing says which token that begins with\n\
         hint: put config.json with decoder_start_token_id beside the model"
        .into())
}

/// The example of a row: the prompt with the encoder's special tokens, and the completion with the decoder's. The decoder reads the
/// completion behind the token that it begins with, and its last token is not read (transformers' `shift_tokens_right`).
pub fn read(text: &Text, row: &Row, start: i32, most: usize, made: &mut Made) -> Result<(), String> {
    let object = &row.object;
    let given = |name: &str| {
        let hint = rows::hint(object, &["prompt", "completion"]);
        let hint = if hint.is_empty() { String::new() } else { format!("\nhint: {hint}") };
        let missing = || format!("there is no '{name}'; its keys are {}{hint}", rows::keys(object));
        string(object, name)?.ok_or_else(missing)
    };
    let (source, target) = (given("prompt")?, given("completion")?);
    let source = text.classified(source, None, most)?;
    let target = text.classified(target, None, most)?;
    if source.ids.is_empty() || target.ids.is_empty() {
        made.left_out.push(Why::Empty);
        return Ok(());
    }
    made.cut += usize::from(source.cut) + usize::from(target.cut);
    let labels = target.ids;
    let ids: Vec<i32> = std::iter::once(start).chain(labels[..labels.len() - 1].iter().copied()).collect();
    let further = vec![Sequence { type_ids: vec![0; ids.len()], ids, labels }];
    let (ids, type_ids) = (source.ids, source.type_ids);
    made.examples.push(TextExample { ids, type_ids, labels: vec![], label: None, numbers: vec![], further });
    Ok(())
}
