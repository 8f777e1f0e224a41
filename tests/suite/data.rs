//! Data sets: text through a tokenizer, tensors as they are, and what becomes of them in a batch.

use npyz::WriterBuilder;
use reslora_compile::internals::ir::{DType, Tensor};
use reslora_compile::internals::train::data::{
    self, Axis, Batch, Dataset, Feed, InputSpec, Options, Order, Source, Task, TextExample,
};
use serde_json::json;
use std::io::Write;
use std::path::Path;

const WORDS: &[&str] = &[
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "<bos>",
    "<eos>",
    "[UNK]",
    "the",
    "cat",
    "sat",
    "mat",
    "on",
    "a",
    "dog",
    "<|im_start|>",
    "<|im_end|>",
    "user",
    "assistant",
];

fn id(word: &str) -> i32 {
    WORDS.iter().position(|w| *w == word).unwrap_or_else(|| panic!("no word {word}")) as i32
}

fn ids(words: &str) -> Vec<i32> {
    words.split(' ').map(id).collect()
}

/// A tokenizer of whole words that carries padding to 128 and truncation to 4, as published ones do. `sentence` puts
/// `[CLS]` and `[SEP]` around each text.
fn tokenizer(dir: &Path, sentence: bool) -> std::path::PathBuf {
    let vocab: serde_json::Map<_, _> = WORDS.iter().map(|w| (w.to_string(), json!(id(w)))).collect();
    let special = |t: &str| json!({"SpecialToken": {"id": t, "type_id": 0}});
    let around = json!({
        "type": "TemplateProcessing",
        "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
        "pair": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]"),
                 {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [id("[CLS]")], "tokens": ["[CLS]"]},
                           "[SEP]": {"id": "[SEP]", "ids": [id("[SEP]")], "tokens": ["[SEP]"]}},
    });
    let added = |w: &&str| {
        json!({"id": id(w), "content": w, "single_word": false, "lstrip": false, "rstrip": false,
                                  "normalized": false, "special": true})
    };
    let added: Vec<_> = WORDS.iter().filter(|w| w.contains(['[', '<'])).map(added).collect();
    let file = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added, "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": if sentence { around } else { json!(null) },
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

fn read(dir: &Path, sentence: bool, max_length: usize, lines: &str) -> Result<Dataset, String> {
    let path = dir.join("data.jsonl");
    std::fs::write(&path, lines).unwrap();
    let options = Options { tokenizer: Some(tokenizer(dir, sentence)), max_length, ..Options::default() };
    data::read(&path, &options).map_err(|e| e.to_string().replace(&format!("{}", dir.display()), "DIR"))
}

fn examples(data: &Dataset) -> Vec<TextExample> {
    match &data.source {
        Source::Text { examples, .. } => examples.iter().map(|e| e.unwrap().into_owned()).collect(),
        Source::Tensors { .. } => panic!("text"),
    }
}

fn spec(name: &str, dims: &[Axis]) -> InputSpec {
    InputSpec { name: name.into(), dtype: DType::I32, dims: Some(dims.to_vec()) }
}

fn open(name: &str) -> InputSpec {
    spec(name, &[Axis::Named("batch".into()), Axis::Named("sequence".into())])
}

fn input<'a>(batch: &'a Batch, name: &str) -> &'a Tensor {
    &batch.inputs.iter().find(|i| i.0 == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn row(t: &Tensor, r: usize) -> &[i32] {
    let n = t.shape()[1];
    &t.as_i32().unwrap()[r * n..(r + 1) * n]
}

#[test]
fn classified_text_is_framed_padded_and_cut_by_us() {
    let dir = tempfile::tempdir().unwrap();
    let lines = r#"{"text": "the cat sat on the mat", "label": 1}

        {"text": "a dog", "text_pair": "sat", "label": 0}"#;
    let data = read(dir.path(), true, 6, lines).unwrap();
    assert_eq!(data.task(), Task::Classify);
    // Eight tokens are cut to six, the closing one kept; the tokenizer file's own limit of four does not count.
    assert_eq!(examples(&data)[0].ids, ids("[CLS] the cat sat on [SEP]"));
    assert_eq!(examples(&data)[1].ids, ids("[CLS] a dog [SEP] sat [SEP]"));
    assert_eq!(examples(&data)[1].type_ids, [0, 0, 0, 0, 1, 1]);
    assert!(data.notes[0].contains("truncated 1 text to 6 tokens"), "{:?}", data.notes);

    let inputs = [open("input_ids"), open("attention_mask"), open("token_type_ids"), open("position_ids")];
    let batch = data.batch(&Feed::new(inputs.to_vec(), 512), &[0, 1]).unwrap();
    assert_eq!(input(&batch, "input_ids").shape(), [2, 16], "padded to a bucket, not to the file's 128");
    assert_eq!(&row(input(&batch, "input_ids"), 1)[4..8], [id("sat"), id("[SEP]"), 0, 0]);
    assert_eq!(&row(input(&batch, "attention_mask"), 0)[4..8], [1, 1, 0, 0]);
    assert_eq!(&row(input(&batch, "token_type_ids"), 1)[3..7], [0, 1, 1, 0]);
    assert_eq!(&row(input(&batch, "position_ids"), 0)[..8], [0, 1, 2, 3, 4, 5, 5, 5]);
    assert_eq!(batch.labels.as_ref().unwrap().as_i32().unwrap(), [1, 0]);
    assert_eq!((batch.examples, batch.counted, batch.tokens), (2, 2, 12));

    // A graph of a fixed batch gets a copy that does not count; one of a fixed length is padded to it.
    let fixed = [spec("input_ids", &[Axis::Fixed(2), Axis::Fixed(9)])];
    let batch = data.batch(&Feed::new(fixed.to_vec(), 512), &[1]).unwrap();
    assert_eq!(input(&batch, "input_ids").shape(), [2, 9]);
    assert_eq!(batch.labels.as_ref().unwrap().as_i32().unwrap(), [0, -100]);
    assert_eq!((batch.examples, batch.counted), (1, 1));
}

#[test]
fn completions_carry_the_loss() {
    let dir = tempfile::tempdir().unwrap();
    let lines = r#"{"prompt": "the cat", "completion": " sat on"}
        {"prompt": "the cat sat on the", "completion": " mat"}"#;
    let data = read(dir.path(), false, 6, lines).unwrap();
    let [first] = &examples(&data)[..] else { panic!("the second has no completion left within six tokens") };
    assert_eq!(first.ids, ids("<bos> the cat sat on <eos>"));
    assert_eq!(first.labels, [-100, -100, id("sat"), id("on"), id("<eos>"), -100]);
    assert!(data.notes.iter().any(|n| n.contains("skipped 1 example with no labelled tokens")), "{:?}", data.notes);

    let whole = read(dir.path(), false, 512, r#"{"text": "a dog"}"#).unwrap();
    assert_eq!(whole.task(), Task::LanguageModel);
    assert_eq!(examples(&whole)[0].labels, [id("a"), id("dog"), id("<eos>"), -100]);
}

#[test]
fn only_answers_are_learnt_from_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let line = r#"{"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]}"#;
    let error = read(dir.path(), false, 512, line).unwrap_err();
    assert!(error.contains("chat template") && error.contains("--chat-template FILE"), "{error}");

    let template = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} a {{ m['content'] }} <eos>\
                    {% else %} dog {{ m['content'].strip() }}{% endif %}{% endfor %}\
                    {% if add_generation_prompt %} a{% endif %}";
    let config = json!({"bos_token": {"content": "<bos>"}, "chat_template": template});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let own = read(dir.path(), false, 512, line).unwrap();
    assert_eq!(examples(&own)[0].ids, ids("<bos> dog the cat a sat <eos>"));
    let counted: Vec<i32> = examples(&own)[0].labels.iter().copied().filter(|l| *l >= 0).collect();
    assert_eq!(counted, ids("sat <eos>"), "the header of an answer is given");
}

#[test]
fn wrong_lines_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let check = |lines: &str, want: &str| {
        let error = read(dir.path(), true, 512, lines).unwrap_err();
        assert!(error.contains(want), "{lines}: {error}");
    };
    check("{\"text\": \"a\", \"label\": 0}\nnot json", "data.jsonl line 2: expected");
    check("{\"text\": \"a\", \"label\": 0}\n{\"text\": \"a\"}", "line 2: some lines have a 'label' and some do not");
    check("{\"text\": \"a\", \"label\": \"good\"}", "line 1: label \"good\" is a name");
    check("{\"prompt\": \"a\"}", "line 1: there is a 'prompt' but no 'completion'");
    check("{\"words\": \"a\"}", "line 1: expected 'text' and 'label'");
    check("\n", "it holds no example");
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let options = Options { tokenizer: Some(dir.path().join("tokenizer.json")), max_length: 8, ..Options::default() };
    let error = data::read(&dir.path().join("data.jsonl"), &options).unwrap_err().to_string();
    assert!(error.contains("cannot read the tokenizer"), "{error}");
}

fn npy<T: npyz::AutoSerialize>(shape: &[u64], values: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut array = npyz::WriteOptions::new().default_dtype().shape(shape).writer(&mut out).begin_nd().unwrap();
    array.extend(values).unwrap();
    array.finish().unwrap();
    out
}

#[test]
fn npz_holds_tensors_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npz");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    zip.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&npy(&[3, 2], (0..6).map(|i| i as f64 / 2.0))).unwrap();
    zip.start_file("labels.npy", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&npy(&[3], [2i64, -100, 0])).unwrap();
    zip.finish().unwrap();
    let data = data::read(&path, &Options { max_length: 1, ..Options::default() }).unwrap();
    assert_eq!((data.len(), data.label_kind().map(|k| k.dtype)), (3, Some(DType::I32)));
    let x = InputSpec { name: "x".into(), dtype: DType::F32, dims: Some(vec![Axis::Unknown, Axis::Fixed(2)]) };
    let batch = data.batch(&Feed::new(vec![x], 1), &[2, 1]).unwrap();
    assert_eq!(input(&batch, "x").as_f32().unwrap(), [2.0, 2.5, 1.0, 1.5]);
    assert_eq!((batch.labels.unwrap().as_i32().unwrap(), batch.counted), (&[0, -100][..], 1));
}

#[test]
fn every_epoch_sees_every_example_in_an_order_of_its_own() {
    let order = Order { shuffle: true, seed: 3 };
    let flat = |e: usize| order.epoch(e, 10, 4).concat();
    let mut sorted = flat(0);
    sorted.sort();
    assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    assert_ne!(flat(0), flat(1));
    assert_eq!(flat(1), flat(1));
    assert_ne!(flat(0), Order { shuffle: true, seed: 4 }.epoch(0, 10, 4).concat());
    let plain = Order { shuffle: false, seed: 3 }.epoch(5, 10, 4);
    assert_eq!(plain, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
}

#[test]
fn tables_are_rows_as_json_lines_are() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let read = |name: &str, content: &[u8], columns: &[(&str, &str)]| {
        std::fs::write(d.join(name), content).unwrap();
        let columns = columns.iter().map(|(n, c)| (n.to_string(), c.to_string())).collect();
        let options = Options { tokenizer: Some(tokenizer(d, true)), max_length: 16, columns, ..Options::default() };
        data::read(&d.join(name), &options).map_err(|e| e.to_string())
    };
    let lines = r#"{"text": "the cat sat", "text_pair": "a dog", "label": 1}
        {"text": "on\nthe mat", "label": 0}
        {"text": "", "label": 2}"#;
    let want = read("want.jsonl", lines.as_bytes(), &[]).unwrap();
    let table = "text,text_pair,label\nthe cat sat,a dog,1\n\"on\nthe mat\",,0\n\"\",,2\n";
    let wide: Vec<u8> = format!("\u{feff}{table}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let marked = format!("\u{feff}{}", table.replace('\n', "\r\n"));
    for (name, content) in [
        ("rows.csv", table.as_bytes()),
        ("rows.CSV", marked.as_bytes()),
        ("wide.csv", &wide),
        ("rows.tsv", table.replace(',', "\t").as_bytes()),
    ] {
        let got = read(name, content, &[]).unwrap();
        assert_eq!(examples(&got), examples(&want), "{name}");
        assert_eq!(got.task(), Task::Classify);
    }
    // Under other names; a label that is a fraction, and none.
    let got = read("rows.csv", b"id,review,stars\n7,the cat,0.5\n", &[("text", "review"), ("label", "stars")]).unwrap();
    let want = read("want.jsonl", br#"{"text": "the cat", "label": 0.5}"#, &[]).unwrap();
    assert_eq!(examples(&got), examples(&want));
    let got = read("rows.csv", b"prompt,completion\nthe cat,sat\n", &[]).unwrap();
    assert_eq!(got.task(), Task::LanguageModel);

    let check = |content: &[u8], says: &str| {
        let error = read("rows.csv", content, &[]).unwrap_err();
        assert!(error.contains(says), "{error}");
    };
    check(
        b"text,label\nthe, cat,1\n",
        "rows.csv line 2: this row has 3 cells, but there are 2 columns\nhint: text that",
    );
    check(b"text,text\na,b\n", "its columns 1 and 2 are both called 'text'");
    check(b"sentence,label\nthe cat,1\n", "--columns text=sentence");
    check(b"text,label\nthe cat,cat\n", "line 2: label \"cat\" is a name");
    check(b"text,label\n", "it holds no example");
}
