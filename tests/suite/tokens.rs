//! Texts as tokens: special tokens, truncation and rows, held to tokenizers and transformers.

use reslora_compile::internals::train::data::{self, Dataset, Options, Source, Task, TextExample};
use serde_json::{Map, Value, json};
use sha2::Digest;
use std::path::PathBuf;

/// A folder with a tokenizer.
pub struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    pub fn new(tokenizer: &Value) -> Folder {
        let folder = Folder { dir: tempfile::tempdir().unwrap() };
        folder.write("tokenizer.json", tokenizer.to_string());
        folder
    }

    /// The byte-level tokenizer of the chat templates.
    pub fn chat() -> Folder {
        Folder::new(&base())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub fn read(&self, file: &str, set: impl FnOnce(&mut Options)) -> Result<Dataset, String> {
        let mut options = Options { tokenizer: Some(self.dir.path().to_path_buf()), ..Options::default() };
        set(&mut options);
        let said = |e: data::DataError| e.to_string().replace(&self.dir.path().display().to_string(), "DIR");
        data::read(&self.path(file), &options).map_err(said)
    }

    pub fn examples_with(&self, rows: &str, set: impl FnOnce(&mut Options)) -> Result<Vec<TextExample>, String> {
        self.write("data.jsonl", rows);
        Ok(examples(&self.read("data.jsonl", set)?))
    }

    pub fn examples(&self, rows: &str) -> Result<Vec<TextExample>, String> {
        self.examples_with(rows, |_| ())
    }

    pub fn decode(&self, ids: &[i32]) -> String {
        let tokenizer = tokenizers::Tokenizer::from_file(self.path("tokenizer.json")).unwrap();
        let ids: Vec<u32> = ids.iter().map(|&i| i as u32).collect();
        tokenizer.decode(&ids, false).unwrap()
    }
}

pub fn base() -> Value {
    serde_json::from_str(include_str!("../../fixtures/inputs/chat/tokenizer.json")).unwrap()
}

fn with(mut tokenizer: Value, changes: &Map<String, Value>) -> Value {
    tokenizer.as_object_mut().unwrap().extend(changes.clone());
    tokenizer
}

fn examples(data: &Dataset) -> Vec<TextExample> {
    match &data.source {
        Source::Text { examples, .. } => examples.iter().map(|e| e.unwrap().into_owned()).collect(),
        Source::Tensors { .. } => panic!("text"),
    }
}

/// Labels of a sequence whose counted tokens are marked.
pub fn next_of(ids: &[i32], mask: &[i32]) -> Vec<i32> {
    (0..ids.len()).map(|t| if mask.get(t + 1) == Some(&1) { ids[t + 1] } else { -100 }).collect()
}

/// The tokens that count.
pub fn counted(example: &TextExample) -> Vec<i32> {
    example.labels.iter().copied().filter(|l| *l >= 0).collect()
}

fn ints(value: &Value) -> Vec<i32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The texts of fixtures/inputs/tokenizers/make.py.
fn texts(words: &[String]) -> Vec<(String, String)> {
    let mut x = 7u64;
    let mut draw = |n: u64| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) % n
    };
    let mut sentence = || {
        let most = if draw(4) == 0 { 30 } else { 8 };
        let n = 1 + draw(most);
        (0..n).map(|_| words[draw(words.len() as u64) as usize].clone()).collect::<Vec<_>>().join(" ")
    };
    (0..1000).map(|_| (sentence(), sentence())).collect()
}

#[test]
fn texts_and_pairs_are_cut_as_tokenizers_cuts_them() {
    let file: Value = serde_json::from_str(include_str!("../../fixtures/inputs/tokenizers/truncation.json")).unwrap();
    let words: Vec<String> = serde_json::from_value(file["words"].clone()).unwrap();
    let rows = |pair: bool| {
        let row = |(a, b): &(String, String)| match pair {
            true => json!({"text": a, "text_pair": b, "label": 0}).to_string(),
            false => json!({"text": a, "label": 0}).to_string(),
        };
        texts(&words).iter().map(row).collect::<Vec<_>>().join("\n")
    };
    let (single, pair) = (rows(false), rows(true));
    let digests = file["digests"].as_object().unwrap();
    assert!(digests.len() > 90, "{}", digests.len());
    for (name, want) in digests {
        let parts: Vec<&str> = name.split(' ').collect();
        let most: usize = parts[3].parse().unwrap();
        let side = if parts[1] == "left" { "Left" } else { "Right" };
        let cut = json!({"direction": side, "max_length": 99, "strategy": "LongestFirst", "stride": 0});
        let changes = json!({"post_processor": file["processors"][parts[0]], "truncation": cut});
        let folder = Folder::new(&with(base(), changes.as_object().unwrap()));
        let rows = if parts[2] == "pair" { &pair } else { &single };
        let got = folder.examples_with(rows, |o| o.max_length = most).unwrap();
        let mut digest = sha2::Sha256::new();
        for e in &got {
            let all = [e.ids.len() as i32].into_iter().chain(e.ids.iter().copied()).chain(e.type_ids.iter().copied());
            all.for_each(|i| digest.update(i.to_le_bytes()));
        }
        let got: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(json!(got), *want, "{name}");
    }
}

#[test]
fn folders_give_the_ids_of_transformers() {
    let cases: Value = serde_json::from_str(include_str!("../../fixtures/inputs/tokenizers/folders.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let changes = case["tokenizer"].as_object().unwrap();
        let tokenizer = if case["base"] == "chat" { with(base(), changes) } else { json!(changes) };
        let folder = Folder::new(&tokenizer);
        folder.write("tokenizer_config.json", case["config"].to_string());
        for (file, content) in case["more"].as_object().unwrap() {
            folder.write(file, content.to_string());
        }
        let lines = case["texts"].as_array().unwrap();
        for (line, want) in lines.iter().zip(case["ids"].as_array().unwrap()) {
            let got = folder.examples(&json!({"text": line}).to_string()).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(got[0].ids, ints(want), "{name}: {line}");
            assert_eq!(got[0].labels, next_of(&got[0].ids, &vec![1; got[0].ids.len()]), "{name}: {line}");
        }
        if case["pair"].is_null() {
            continue;
        }
        let row = json!({"text": lines[0], "text_pair": lines[1], "label": 0});
        assert_eq!(folder.examples(&row.to_string()).unwrap()[0].ids, ints(&case["pair"]), "{name}: pair");
    }
}

/// Whole words with `<s>` and `</s>` around them where the tokenizer says so.
fn words(framed: bool) -> Value {
    let words = ["<pad>", "<unk>", "<s>", "</s>", "the", "cat", "sat", "on", "a", "mat"];
    let vocab: Map<String, Value> = words.iter().enumerate().map(|(i, w)| (w.to_string(), json!(i))).collect();
    let special = |t: &str| json!({"SpecialToken": {"id": t, "type_id": 0}});
    let token = |t: &str, i: u32| json!({"id": t, "ids": [i], "tokens": [t]});
    let text = |of: &str| json!({"Sequence": {"id": of, "type_id": 0}});
    let frame = json!({
        "type": "TemplateProcessing", "single": [special("<s>"), text("A"), special("</s>")],
        "pair": [special("<s>"), text("A"), special("</s>"), text("B"), special("</s>")],
        "special_tokens": {"<s>": token("<s>", 2), "</s>": token("</s>", 3)}});
    let added = |i: usize| {
        json!({"id": i, "content": words[i], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0), added(1), added(2), added(3)],
           "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
           "post_processor": if framed { frame } else { json!(null) }, "decoder": null,
           "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}})
}

#[test]
fn special_tokens_are_there_once() {
    for framed in [true, false] {
        let folder = Folder::new(&words(framed));
        for text in ["the cat", "<s> the cat </s>", "<s>the cat", "the cat</s>", "<s> <s> the cat </s></s>"] {
            let got = folder.examples(&json!({"text": text}).to_string()).unwrap();
            assert_eq!(got[0].ids, [2, 4, 5, 3], "{text}");
            assert_eq!(got[0].labels, [4, 5, 3, -100], "{text}");
        }
        for (prompt, completion) in
            [("the", " cat"), ("<s> the", " cat </s>"), ("<s>the ", "cat</s>"), ("", "<s> the cat")]
        {
            let got = folder.examples(&json!({"prompt": prompt, "completion": completion}).to_string()).unwrap();
            assert_eq!(got[0].ids, [2, 4, 5, 3], "{prompt:?} {completion:?}");
            assert_eq!(got[0].labels[1..], [5, 3, -100], "{prompt:?} {completion:?}");
        }
        let pair = json!({"text": "<s> the cat </s>", "text_pair": "</s> sat </s>", "label": 1}).to_string();
        let want: &[i32] = if framed { &[2, 4, 5, 3, 6, 3] } else { &[2, 4, 5, 3, 3, 6, 3] };
        assert_eq!(folder.examples(&pair).unwrap()[0].ids, want);
        // Without special tokens nothing is added, and nothing taken away.
        let none = folder.examples_with(r#"{"text": "the cat </s>"}"#, |o| o.special_tokens = false).unwrap();
        assert_eq!(none[0].ids, [4, 5, 3]);
        let none = folder.examples_with(r#"{"prompt": "the", "completion": " cat"}"#, |o| o.special_tokens = false);
        assert_eq!(none.unwrap()[0].ids, [4, 5]);
    }
    // A tokenizer that says nothing gets the usual tokens, and a note.
    let folder = Folder::new(&words(false));
    folder.write("data.jsonl", r#"{"text": "the cat"}"#);
    let note = folder.read("data.jsonl", |_| ()).unwrap().notes.join("\n");
    assert!(note.contains("<s> and </s>") && note.contains("--no-special-tokens"), "{note}");
    let quiet = folder.read("data.jsonl", |o| o.special_tokens = false).unwrap();
    assert_eq!(quiet.notes, Vec::<String>::new());
    // A configuration that names them, but adds none.
    folder.write("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
    let quiet = folder.read("data.jsonl", |_| ()).unwrap();
    assert_eq!((examples(&quiet)[0].ids.as_slice(), quiet.notes.len()), (&[4, 5][..], 0));
    // A completion ends with the end of sequence all the same.
    let got = folder.examples(r#"{"prompt": "the", "completion": " cat"}"#).unwrap();
    assert_eq!((got[0].ids.as_slice(), got[0].labels.as_slice()), (&[4, 5, 3][..], &[5, 3, -100][..]));
}

#[test]
fn prompt_and_completion_are_one_text() {
    let folder = Folder::chat();
    folder.write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    for (prompt, completion, learnt) in [
        ("Answer in", " one word", " one word</s>"),
        // The token that holds the border counts, as it holds some of the completion.
        ("the assi", "stant asks", " assistant asks</s>"),
        ("Zürich: ", "🏔️ é", " 🏔️ é</s>"),
        ("a", "   ", "   </s>"),
    ] {
        let got = folder.examples(&json!({"prompt": prompt, "completion": completion}).to_string()).unwrap();
        assert_eq!(folder.decode(&got[0].ids), format!("{prompt}{completion}</s>"));
        assert_eq!(folder.decode(&counted(&got[0])).trim_start(), learnt.trim_start(), "{prompt:?} {completion:?}");
        let whole = folder.examples(&json!({"text": format!("{prompt}{completion}")}).to_string()).unwrap();
        assert_eq!(got[0].ids[..got[0].ids.len() - 1], whole[0].ids, "tokenised together");
    }
}

#[test]
fn what_is_cut_or_left_out_is_said() {
    let folder = Folder::new(&words(false));
    let rows = [
        r#"{"prompt": "the cat", "completion": " sat on a mat"}"#,
        r#"{"prompt": "the cat sat on a mat", "completion": " the"}"#,
        r#"{"prompt": "the", "completion": " cat"}"#,
    ];
    folder.write("data.jsonl", rows.join("\n"));
    let data = folder.read("data.jsonl", |o| o.max_length = 5).unwrap();
    let got = examples(&data);
    assert_eq!(got[0].ids, [2, 4, 5, 6, 7], "cut on the right");
    assert_eq!(got[0].labels, [-100, -100, 6, 7, -100]);
    assert_eq!(got.len(), 2);
    let notes = data.notes.join("\n");
    assert!(notes.contains("truncated 1 text to 5 tokens (--max-length)"), "{notes}");
    assert!(notes.contains("1 prompt fills the 5 tokens of --max-length") && notes.contains("(line 2)"), "{notes}");
    let error = folder.read("data.jsonl", |o| o.max_length = 2).unwrap_err();
    assert!(error.contains("3 prompts fill") || error.contains("2 prompts fill"), "{error}");
    assert!(error.contains("--max-length"), "{error}");
    // Texts keep the tokens around them.
    let text = folder.examples_with(r#"{"text": "the cat sat on a mat"}"#, |o| o.max_length = 5).unwrap();
    assert_eq!(text[0].ids, [2, 4, 5, 6, 3]);
    let error = folder.examples_with(r#"{"text": "the"}"#, |o| o.max_length = 1).unwrap_err();
    assert!(error.contains("do not hold the 2 special tokens"), "{error}");
    folder.write("tokenizer_config.json", "{}");
    let error = folder.examples("{\"text\": \"\"}\n\n{\"text\": \"\"}").unwrap_err();
    assert!(error.contains("2 empty texts (lines 1, 3)"), "{error}");
    let error = folder.examples(r#"{"text": "", "label": 0}"#).unwrap_err();
    assert!(error.contains("1 empty text (line 1)"), "{error}");
}

#[test]
fn tokenizers_are_found_and_named() {
    let folder = Folder::new(&words(true));
    folder.write("data.jsonl", r#"{"text": "the cat"}"#);
    let file = folder.path("tokenizer.json");
    let here = Some(folder.path(""));
    assert!(folder.read("data.jsonl", |o| o.tokenizer = Some(file)).is_ok());
    assert!(folder.read("data.jsonl", |o| (o.tokenizer, o.beside) = (None, here.clone())).is_ok());
    assert!(folder.read("data.jsonl", |o| o.tokenizer = None).unwrap_err().contains("needs a tokenizer"));
    let empty = folder.path("empty");
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(empty.join("vocab.txt"), "the").unwrap();
    let error = folder.read("data.jsonl", |o| o.tokenizer = Some(empty)).unwrap_err();
    assert!(error.contains("holds vocab.txt but no tokenizer.json"), "{error}");
    folder.write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
    assert!(folder.read("data.jsonl", |_| ()).unwrap_err().contains("Git LFS pointer"));
    folder.write("tokenizer.json", "<!DOCTYPE html><html></html>");
    assert!(folder.read("data.jsonl", |_| ()).unwrap_err().contains("web page"));
}

#[test]
fn rows_come_in_many_forms() {
    let folder = Folder::new(&words(true));
    let lines = "{\"text\": \"the cat\", \"label\": 0}\n{\"text\": \"a mat\", \"label\": 1}\n";
    let rows = folder.examples(lines).unwrap();
    let array = format!("[{}]", lines.trim().replace('\n', ",\n"));
    let utf16 = |marked: bool| -> Vec<u8> {
        let text = if marked { format!("\u{feff}{lines}") } else { lines.to_string() };
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    };
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("data.jsonl", format!("\u{feff}{lines}").into()),
        ("data.jsonl", lines.replace('\n', "\r\n\r\n").into()),
        ("data.jsonl", utf16(true)),
        ("data.jsonl", format!("\u{feff}{lines}").encode_utf16().flat_map(u16::to_be_bytes).collect()),
        ("data.json", array.clone().into()),
        ("data.json", array.replace('\n', "").into()),
        ("data.json", format!("{{\"version\": 1, \"data\": {array}}}").into()),
        ("data.json", format!("{{\n\"version\": 1,\n\"data\":\n {array}\n}}").into()),
        ("data.json", lines.replace(", ", ",\n  ").into()),
        ("data.ndjson", lines.replace('\n', " ").into()),
    ];
    for (name, bytes) in forms {
        folder.write(name, &bytes);
        let data = folder.read(name, |_| ()).unwrap_or_else(|e| panic!("{}: {e}", String::from_utf8_lossy(&bytes)));
        assert_eq!(examples(&data), rows, "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(data.task(), Task::Classify);
    }
    let check = |text: &[u8], want: &str| {
        folder.write("data.json", text);
        let error = folder.read("data.json", |_| ()).unwrap_err();
        assert!(error.contains(want), "{}: {error}", String::from_utf8_lossy(text));
    };
    check(&utf16(false), "UTF-16");
    check(b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n", "line 2: a byte there is not UTF-8");
    check(b"{\"text\": \"a\"}\n{\"text\": }\n", "line 2: expected value (column 10)");
    check(b"{\"text\": \"a\"}\n[1]\n", "line 2: expected an object, not a list");
    check(b"[\n{\"text\": \"a\"},\n{\"words\": \"a\"}]", "line 3: expected 'text'");
    check(b"[{\"text\": \"a\"}, {\"words\": \"a\"}]", "line 1: item 2: expected 'text'");
    check(b"[{\"text\": \"a\"},", "line 1: EOF");
    check(b"{\n \"text\": \"a\",,\n}", "line 2: ");
    check(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer");
    // A conversation holds a list of objects, and is a row all the same.
    check(br#"{"messages": [{"role": "user", "content": "x"}]}"#, "chat template");
}

#[test]
fn other_columns_are_hinted_at_and_taken() {
    let folder = Folder::new(&words(true));
    let check = |row: &str, want: &[&str]| {
        let error = folder.examples(row).unwrap_err();
        for want in want {
            assert!(error.contains(want), "{row}: {error}");
        }
    };
    check(r#"{"sentence": "the", "labels": 1}"#, &["'sentence', 'labels'", "--columns text=sentence,label=labels"]);
    check(
        r#"{"idx": 3, "premise": "the", "hypothesis": "a", "label": 1}"#,
        &["no 'text'", "text=premise,text_pair=hypothesis"],
    );
    check(r#"{"review": "the", "stars": 4}"#, &["text=review,label=stars"]);
    check(r#"{"Text": "the", "Label": 4}"#, &["text=Text,label=Label"]);
    check(r#"{"question": "the", "answer": "a"}"#, &["prompt=question,completion=answer"]);
    check(r#"{"input": "the", "output": "a"}"#, &["prompt=input,completion=output"]);
    check(r#"{"prompt": "the", "response": "a"}"#, &["no 'completion'", "completion=response"]);
    check(r#"{"content": "the"}"#, &["text=content"]);
    check(r#"{"dialog": [{"role": "user"}]}"#, &["messages=dialog"]);
    check(
        "{\"text\": \"a\", \"label\": 0}\n{\"text\": \"a\", \"label\": null}",
        &["line 2", "'label' is null", "line 1"],
    );
    check(r#"{"text": "the", "label": null}"#, &["line 1", "'label' is null, here and in every row"]);
    check(r#"{"text": "the", "text_pair": "cat"}"#, &["'text_pair' but no 'label'"]);
    check("{\"text\": \"a\"}\n\n{\"text\": \"a\", \"label\": 0}", &["line 1", "no 'label'", "line 3"]);

    let columns =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Vec<_>>();
    let row = r#"{"sentence": "the cat", "text": "a mat", "labels": 1}"#;
    let got = folder.examples_with(row, |o| o.columns = columns(&[("text", "sentence"), ("label", "labels")])).unwrap();
    assert_eq!(got[0].ids, [2, 4, 5, 3]);
    let error = folder.examples_with(row, |o| o.columns = columns(&[("text", "words")])).unwrap_err();
    assert!(error.contains("no row has a column 'words'") && error.contains("'sentence'"), "{error}");
    folder.write("data.jsonl", r#"{"text": "the cat", "labels": 1}"#);
    let notes = folder.read("data.jsonl", |_| ()).unwrap().notes.join("\n");
    assert!(notes.contains("--columns label=labels"), "{notes}");
}

#[test]
fn alpaca_rows_have_a_prompt_of_their_own() {
    let folder = Folder::chat();
    folder.write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    let row = json!({"instruction": "Name the sky", "input": "blue", "output": "Sky."});
    folder.write("data.jsonl", row.to_string());
    let data = folder.read("data.jsonl", |_| ()).unwrap();
    let got = &examples(&data)[0];
    let text = folder.decode(&got.ids);
    assert!(text.starts_with("Below is an instruction that describes a task, paired with an input"), "{text}");
    assert!(text.ends_with("### Instruction:\nName the sky\n\n### Input:\nblue\n\n### Response:Sky.</s>"), "{text}");
    assert_eq!(folder.decode(&counted(got)), "Sky.</s>");
    assert!(data.notes.iter().any(|n| n.contains("Alpaca")), "{:?}", data.notes);
}
