//! A Hugging Face `tokenizer.json`. Texts become the same tokens as in the tokenizer's own framework.

use super::special::{self, Special};
use super::template::Templates;
use super::{DataError, Options};
use crate::file_kind::{self, Kind};
use serde_json::{Map, Value};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{
    Encoding, PostProcessor, PostProcessorWrapper, Token, Tokenizer, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

/// A tokenizer and the special tokens training needs.
pub struct Text {
    /// Without a post-processor: that is applied after truncation, and offsets are those of the text itself.
    tokenizer: Tokenizer,
    /// What frames classified texts, and texts of language models.
    classified: Option<PostProcessorWrapper>,
    language: Option<PostProcessorWrapper>,
    classified_marks: Marks,
    language_marks: Marks,
    /// Ends a completion.
    pub eos: Option<(i32, String)>,
    /// Tokens that end what a language model generates, beside that one: those of `generation_config.json` and `config.json`.
    pub ends: Vec<i32>,
    /// `None` where neither the configuration nor the tokenizer nor a usual name gives one.
    pub pad: Option<i32>,
    /// Whether batches are padded on the left.
    pub pad_left: bool,
    /// The longest sequence that the tokenizer's configuration speaks of.
    pub model_max_length: Option<usize>,
    cut_left: bool,
    /// The templates of `messages`.
    pub templates: Templates,
    /// Special tokens by name, as templates see them.
    pub names: Map<String, Value>,
    /// What a user should know once texts of language models are read.
    pub note: Option<String>,
}

/// Token ids with what else a model may read.
pub struct Tokens {
    pub ids: Vec<i32>,
    pub type_ids: Vec<i32>,
    /// Whether the text was longer.
    pub cut: bool,
}

/// The special tokens that a post-processor puts around a text, and around and between two.
#[derive(Debug, Default)]
struct Marks {
    front: Vec<(i32, String)>,
    back: Vec<(i32, String)>,
    between: Vec<(i32, String)>,
}

/// Where tokenizer.json is: a file or folder that is given, else beside the model.
fn find(data: &Path, options: &Options) -> Result<PathBuf, DataError> {
    let Some(given) = &options.tokenizer else {
        let beside = options.beside.as_ref().map(|folder| folder.join("tokenizer.json")).filter(|p| p.is_file());
        return beside.ok_or_else(|| DataError::NoTokenizer { path: data.to_path_buf() });
    };
    if !given.is_dir() {
        return Ok(given.clone());
    }
    let file = given.join("tokenizer.json");
    if file.is_file() {
        return Ok(file);
    }
    let others = ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"];
    let why = match others.iter().find(|name| given.join(name).is_file()) {
        Some(name) => format!(
            "the folder holds {name} but no tokenizer.json, which transformers writes with \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        ),
        None => "the folder holds no tokenizer.json".to_string(),
    };
    Err(DataError::Tokenizer { path: given.clone(), why })
}

/// Opens the tokenizer for a data file, with what lies beside it.
pub fn open(data: &Path, options: &Options) -> Result<Text, DataError> {
    let path = find(data, options)?;
    let bad = |why: String| DataError::Tokenizer { path: path.clone(), why };
    let bytes = std::fs::read(&path).map_err(|e| bad(e.to_string()))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut tokenizer = Tokenizer::from_bytes(text).map_err(|e| match file_kind::kind(&bytes) {
        Some(kind) if kind != Kind::Json => DataError::OtherTokenizer { path: path.clone(), kind },
        _ => bad(e.to_string()),
    })?;
    let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
    let config = special::object(&folder.join("tokenizer_config.json")).map_err(bad)?.map(Value::Object);
    let special = special::apply(&mut tokenizer, config.as_ref(), &folder).map_err(bad)?;
    let Special { names, eos, pad, pad_left, cut_left, model_max_length, usual, note } = special;
    let templates = Templates::load(&folder, config.as_ref(), options.chat_template.as_deref()).map_err(bad)?;
    let own = tokenizer.get_post_processor().cloned();
    tokenizer.with_post_processor(None::<PostProcessorWrapper>);
    let (classified, language) = match options.special_tokens {
        true => (own.clone(), own.or(usual)),
        false => (None, None),
    };
    let marks = |processor: &Option<PostProcessorWrapper>| marks(&tokenizer, processor.as_ref());
    let classified_marks = marks(&classified).map_err(bad)?;
    let language_marks = marks(&language).map_err(bad)?;
    let eos = eos.filter(|_| options.special_tokens);
    let note = note.filter(|_| options.special_tokens);
    let mut ends = Vec::new();
    for folder in std::iter::once(&folder).chain(options.beside.as_ref()) {
        ends.extend(special::ends(folder).map_err(bad)?);
    }
    let text = Text {
        tokenizer,
        classified,
        language,
        classified_marks,
        language_marks,
        eos,
        ends,
        pad,
        pad_left,
        model_max_length,
        cut_left,
        templates,
        names,
        note,
    };
    Ok(text)
}

/// Finds out what a post-processor adds, from what it makes of a text of one token that is like no other.
fn marks(tokenizer: &Tokenizer, processor: Option<&PostProcessorWrapper>) -> Result<Marks, String> {
    let Some(processor) = processor else { return Ok(Marks::default()) };
    let text = || Encoding::from_tokens(vec![Token::new(u32::MAX, "x".into(), (0, 1))], 0);
    let named = |ids: &[u32]| {
        ids.iter().map(|&i| (i as i32, tokenizer.id_to_token(i).unwrap_or_default())).collect::<Vec<(i32, String)>>()
    };
    let single = processor.process(text(), None, true).map_err(|e| e.to_string())?;
    let pair = processor.process(text(), Some(text()), true).map_err(|e| e.to_string())?;
    let parts: Vec<&[u32]> = single.get_ids().split(|&i| i == u32::MAX).collect();
    let [front, back] = parts[..] else { return Err("its post-processor does not keep a text as it is".into()) };
    let between = pair.get_ids().split(|&i| i == u32::MAX).nth(1).unwrap_or_default();
    Ok(Marks { front: named(front), back: named(back), between: named(between) })
}

impl Marks {
    /// A text without the special tokens at its ends, written out, that it gets anyway; each with one space beside it.
    fn strip<'a>(&self, mut text: &'a str, second: bool) -> &'a str {
        let front = if second { &self.between } else { &self.front };
        let find = |marks: &[(i32, String)], is: &dyn Fn(&str) -> bool| {
            marks.iter().map(|m| m.1.len()).zip(marks).filter(|(n, m)| *n > 0 && is(&m.1)).map(|(n, _)| n).max()
        };
        while let Some(n) = find(front, &|m| text.starts_with(m)) {
            text = &text[n..];
            text = text.strip_prefix(' ').unwrap_or(text);
        }
        while let Some(n) = find(&self.back, &|m| text.ends_with(m)) {
            text = &text[..text.len() - n];
            text = text.strip_suffix(' ').unwrap_or(text);
        }
        text
    }
}

impl Text {
    /// A text to classify, or two, cut at `most` tokens: special tokens are kept and the longer text is cut first.
    pub fn classified(&self, text: &str, pair: Option<&str>, most: usize) -> Result<Tokens, String> {
        let text = self.classified_marks.strip(text, false);
        let pair = pair.map(|p| self.classified_marks.strip(p, true));
        self.framed(self.classified.as_ref(), text, pair, most)
    }

    /// A text of a language model, cut at `most` tokens; special tokens are kept.
    pub fn language(&self, text: &str, most: usize) -> Result<Tokens, String> {
        self.framed(self.language.as_ref(), self.language_marks.strip(text, false), None, most)
    }

    /// Whether a text of a language model holds nothing but special tokens that it gets anyway.
    pub fn is_blank(&self, text: &str) -> bool {
        self.language_marks.strip(text, false).is_empty()
    }

    fn framed(
        &self,
        processor: Option<&PostProcessorWrapper>,
        text: &str,
        pair: Option<&str>,
        most: usize,
    ) -> Result<Tokens, String> {
        let encode = |text: &str| self.tokenizer.encode(text, false).map_err(|e| e.to_string());
        let added = processor.map_or(0, |p| p.added_tokens(pair.is_some()));
        if added > most {
            return Err(format!(
                "{most} tokens (--max-length) do not hold the {added} special tokens that each text gets\n\
                 hint: a larger --max-length"
            ));
        }
        let mut first = encode(text)?;
        let mut second = pair.map(encode).transpose()?;
        if let Some(second) = &mut second {
            second.set_type_ids(vec![1; second.len()]);
        }
        let direction = if self.cut_left { TruncationDirection::Left } else { TruncationDirection::Right };
        let strategy = TruncationStrategy::LongestFirst;
        let cut = first.len() + second.as_ref().map_or(0, Encoding::len) > most - added;
        if cut {
            let params = TruncationParams { max_length: most - added, strategy, stride: 0, direction };
            (first, second) = truncate_encodings(first, second, &params).map_err(|e| e.to_string())?;
            first.take_overflowing();
            if let Some(second) = &mut second {
                second.take_overflowing();
            }
        }
        let whole = match (processor, second) {
            (Some(p), second) => p.process(first, second, true).map_err(|e| e.to_string())?,
            (None, None) => first,
            (None, Some(second)) => Encoding::merge([first, second], false),
        };
        Ok(Tokens { ids: ints(whole.get_ids()), type_ids: ints(whole.get_type_ids()), cut })
    }

    /// What a token says.
    pub fn piece(&self, id: i32) -> String {
        self.tokenizer.decode(&[id as u32], false).unwrap_or_default()
    }

    /// Token ids of a text alone, and the bytes of it that each token holds.
    pub fn plain(&self, text: &str) -> Result<(Vec<i32>, Vec<Range<usize>>), String> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| e.to_string())?;
        let offsets = encoding.get_offsets().iter().map(|o| o.0..o.1).collect();
        Ok((ints(encoding.get_ids()), offsets))
    }

    /// A prompt that a language model goes on from, as [`Text::completed`] begins.
    pub fn prompt(&self, prompt: &str) -> Result<Vec<i32>, String> {
        let front = &self.language_marks.front;
        let prompt = Marks { front: front.clone(), ..Marks::default() }.strip(prompt, false);
        Ok(front.iter().map(|m| m.0).chain(self.plain(prompt)?.0).collect())
    }

    /// What tokens say, without special ones.
    pub fn said(&self, ids: &[i32]) -> String {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| id.try_into().ok()).collect();
        self.tokenizer.decode(&ids, true).unwrap_or_default()
    }

    /// A prompt and what completes it, tokenised as one text: token ids, and whether each counts. The completion ends
    /// with the end-of-sequence token, if one is known, which counts.
    pub fn completed(&self, prompt: &str, completion: &str) -> Result<(Vec<i32>, Vec<bool>), String> {
        let marks = &self.language_marks;
        let prompt = Marks { front: marks.front.clone(), ..Marks::default() }.strip(prompt, false);
        let ends = marks.back.iter().chain(self.eos.as_ref().filter(|e| !marks.back.contains(e)));
        let back: Vec<(i32, String)> = ends.cloned().collect();
        let front = if prompt.is_empty() { marks.front.clone() } else { vec![] };
        let completion = Marks { front, back, ..Marks::default() }.strip(completion, false);
        let (body, offsets) = self.plain(&format!("{prompt}{completion}"))?;
        let mut ids: Vec<i32> = marks.front.iter().map(|m| m.0).collect();
        let mut counts = vec![false; ids.len()];
        ids.extend(body);
        counts.extend(offsets.iter().map(|o| o.end > prompt.len()));
        // What the tokenizer puts behind a text comes last; without an end of sequence there, that comes before it.
        let end = self.eos.as_ref().filter(|e| marks.back.iter().all(|m| m.0 != e.0));
        ids.extend(end.into_iter().chain(&marks.back).map(|m| m.0));
        counts.resize(ids.len(), true);
        Ok((ids, counts))
    }
}

fn ints(xs: &[u32]) -> Vec<i32> {
    xs.iter().map(|&x| x as i32).collect()
}
