//! Conversations: rendered, tokenised and masked as transformers does, in every form that rows have.

use crate::tokens::{Folder, counted, next_of};
use serde_json::{Value, json};

fn cases() -> Vec<Value> {
    let text = include_str!("../../fixtures/inputs/chat/cases.json");
    serde_json::from_str::<Value>(text).unwrap().as_array().unwrap().clone()
}

fn template(name: &str) -> String {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/inputs/chat/templates");
    std::fs::read_to_string(format!("{dir}/{name}.jinja")).unwrap()
}

#[test]
fn ten_templates_give_the_tokens_and_masks_of_transformers() {
    let mut right = 0;
    for (i, case) in cases().iter().enumerate() {
        let name = case["template"].as_str().unwrap();
        let folder = Folder::chat();
        folder.write("chat_template.jinja", template(name));
        let config =
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": case["bos"], "eos_token": case["eos"]});
        folder.write("tokenizer_config.json", config.to_string());
        let got = folder.examples(&case["row"].to_string()).unwrap_or_else(|e| panic!("case {i}, {name}: {e}"));
        let want = case["examples"].as_array().unwrap();
        assert_eq!(got.len(), want.len(), "case {i}, {name}");
        for (got, want) in got.iter().zip(want) {
            let ids: Vec<i32> = serde_json::from_value(want["ids"].clone()).unwrap();
            let mask: Vec<i32> = serde_json::from_value(want["mask"].clone()).unwrap();
            assert_eq!(got.ids, ids, "case {i}, {name}: {}", folder.decode(&got.ids));
            assert_eq!(got.labels, next_of(&ids, &mask), "case {i}, {name}: {}", folder.decode(&counted(got)));
        }
        right += 1;
    }
    assert_eq!(right, 30);
}

/// A folder with a template that names roles.
fn plain() -> Folder {
    let folder = Folder::chat();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    let config = json!({"eos_token": "</s>", "chat_template": template});
    folder.write("tokenizer_config.json", config.to_string());
    folder
}

/// What a row is rendered to, and what is learnt of it.
fn rendered(folder: &Folder, row: Value) -> (String, String) {
    let examples = folder.examples(&row.to_string()).unwrap();
    let [one] = &examples[..] else { panic!("{} examples", examples.len()) };
    (folder.decode(&one.ids), folder.decode(&counted(one)))
}

#[test]
fn conversations_have_many_forms() {
    let folder = plain();
    let whole = "<user>the sky<|>".replace("<|>", "</s>") + "<assistant>blue</s>";
    let messages = json!([{"role": "user", "content": "the sky"}, {"role": "assistant", "content": "blue"}]);
    let two = (whole.clone(), "blue</s>".to_string());
    assert_eq!(rendered(&folder, json!({"messages": messages})), two);
    assert_eq!(rendered(&folder, json!({"prompt": [messages[0]], "completion": [messages[1]]})), two);
    let turns = json!([{"from": "human", "value": "the sky"}, {"from": "gpt", "value": "blue"}]);
    assert_eq!(rendered(&folder, json!({"conversations": turns})), two);
    assert_eq!(rendered(&folder, json!({"conversations": messages})), two);
    assert_eq!(rendered(&folder, json!({"instruction": "the sky", "input": "", "output": "blue"})), two);
    let (text, learnt) = rendered(&folder, json!({"instruction": "name", "input": "the sky", "output": "blue"}));
    assert_eq!((text.as_str(), learnt.as_str()), ("<user>name\n\nthe sky</s><assistant>blue</s>", "blue</s>"));
    // Answers in a prompt are given.
    let prompt = json!([messages[0], messages[1], messages[0]]);
    let (text, learnt) = rendered(&folder, json!({"prompt": prompt, "completion": [messages[1]]}));
    assert_eq!((text, learnt.as_str()), (format!("{whole}{whole}"), "blue</s>"));
    let calls = json!([
        {"from": "system", "value": "short"}, {"from": "human", "value": "weather"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"},
        {"from": "observation", "value": "rain"}, {"from": "gpt", "value": "rain"}]);
    let (text, learnt) = rendered(&folder, json!({"conversations": calls}));
    assert_eq!(text, "<system>short</s><user>weather</s><assistant></s><tool>rain</s><assistant>rain</s>");
    assert_eq!(learnt, "</s>rain</s>");
    // Parts of text are joined where the template does not take them apart.
    let parts = json!([{"type": "text", "text": "the "}, {"type": "text", "text": "sky"}]);
    let row = json!({"messages": [{"role": "user", "content": parts}, messages[1]]});
    assert_eq!(rendered(&folder, row.clone()), two);
    let own = "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in \
               m.content %}[{{ p.text }}]{% endfor %}{% endif %}{{ eos_token }}{% endfor %}\
               {% if add_generation_prompt %}<assistant>{% endif %}";
    folder.write("tokenizer_config.json", json!({"eos_token": "</s>", "chat_template": own}).to_string());
    assert_eq!(rendered(&folder, row).0, "<user>[the ][sky]</s><assistant>blue</s>");
    for (row, want) in [
        (json!({"messages": "hello"}), "'messages' must be a list"),
        (json!({"messages": [{"content": "x"}]}), "message 1 has no 'role'"),
        (json!({"messages": [{"role": "user", "content": null}]}), "message 1 has no 'content'"),
        (json!({"messages": [{"role": "user", "content": "x"}]}), "without an answer of the assistant"),
        (json!({"conversations": [{"from": "narrator", "value": "x"}]}), "from 'narrator'"),
    ] {
        let error = folder.examples(&row.to_string()).unwrap_err();
        assert!(error.contains(want), "{row}: {error}");
    }
}

#[test]
fn templates_are_found_by_name_and_file() {
    let say = |what: &str| format!("{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{what}");
    let row = json!({"messages": [{"role": "assistant", "content": "blue"}]});
    let with_tools = json!({"messages": row["messages"], "tools": [{"type": "function"}]});
    let folder = Folder::chat();
    let error = folder.examples(&row.to_string()).unwrap_err();
    assert!(error.contains("chat template") && error.contains("--chat-template"), "{error}");
    let list = json!([{"name": "default", "template": say("-one")}, {"name": "tool_use", "template": say("-two")}]);
    folder.write("tokenizer_config.json", json!({"chat_template": list}).to_string());
    let text = |row: &Value, choice: Option<&str>| {
        let examples = folder.examples_with(&row.to_string(), |o| o.chat_template = choice.map(String::from));
        examples.map(|e| folder.decode(&e[0].ids))
    };
    assert_eq!(text(&row, None).unwrap(), "blue-one");
    assert_eq!(text(&with_tools, None).unwrap(), "blue-two");
    assert_eq!(text(&row, Some("tool_use")).unwrap(), "blue-two");
    let error = text(&row, Some("other")).unwrap_err();
    assert!(error.contains("other") && error.contains("default, tool_use"), "{error}");
    let file = folder.write("mine.jinja", say("-mine"));
    assert_eq!(text(&with_tools, Some(&file)).unwrap(), "blue-mine");
    let file = folder.write("other.json", json!({"chat_template": say("-json")}).to_string());
    assert_eq!(text(&row, Some(&file)).unwrap(), "blue-json");
    // Files beside the tokenizer come before its configuration.
    folder.write("chat_template.jinja", say("-file"));
    folder.write("additional_chat_templates/tool_use.jinja", say("-tools"));
    folder.write("additional_chat_templates/rag.jinja", say("-rag"));
    assert_eq!(text(&row, None).unwrap(), "blue-file");
    assert_eq!(text(&with_tools, None).unwrap(), "blue-tools");
    assert_eq!(text(&row, Some("rag")).unwrap(), "blue-rag");
    folder.write("chat_template.jinja", "{{ raise_exception('only three roles') }}");
    assert!(text(&row, None).unwrap_err().contains("line 1: the chat template says: only three roles"));
    folder.write("chat_template.jinja", "{% for %}");
    assert!(text(&row, None).unwrap_err().contains("chat template 'default'"));
}

#[test]
fn templates_see_what_python_shows_them() {
    let folder = Folder::chat();
    let check = |template: &str, want: &str| {
        folder.write("chat_template.jinja", format!("{template}{{% generation %}}.{{% endgeneration %}}"));
        let config = json!({"bos_token": "<s>", "additional_special_tokens": ["<|end|>"]});
        folder.write("tokenizer_config.json", config.to_string());
        let row = json!({
            "messages": [{"role": "user", "content": "hi", "z": 1, "a": {"b": [1, 2.0, null, true, "it's \u{e9}\n"]}}],
            "documents": [{"title": "T"}], "chat_template_kwargs": {"enable_thinking": false}});
        assert_eq!(rendered(&folder, row).0, format!("{want}."), "{template}");
    };
    check(
        "{{ none }} {{ true }} {{ false }} {{ 1.0 }} {{ 1e20 }} {{ 0.00001 }} {{ 5 / 2 }}",
        "None True False 1.0 1e+20 1e-05 2.5",
    );
    check("{{ messages[0].a }}", "{'b': [1, 2.0, None, True, \"it's \u{e9}\\n\"]}");
    check(
        "{{ messages[0] | tojson }}",
        "{\"role\": \"user\", \"content\": \"hi\", \"z\": 1, \"a\": {\"b\": [1, 2.0, null, true, \"it's \u{e9}\\n\"]}}",
    );
    check("{{ '<&>\u{e9}' | tojson(ensure_ascii=true) }}", "\"<&>\\u00e9\"");
    check("{{ {'b': 1, 'a': []} | tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": [],\n  \"b\": 1\n}");
    check("{{ [1, {'k': 2}] | tojson(separators=(',', ':')) }}", "[1,{\"k\":2}]");
    check(
        "{{ tools is none }} {{ documents[0].title }} {{ enable_thinking }} {{ bos_token }} {{ additional_special_tokens[0] }}",
        "True T False <s> <|end|>",
    );
    check(
        "{{ 'x' is iterable }} {{ none is iterable }} {{ 'x' is sequence }} {{ messages[0] is mapping }}",
        "True False True True",
    );
    check(
        "{{ 'a</think>b'.split('</think>')[-1] }} {{ ' x'.lstrip() }} {{ 'abc'.removeprefix('a') }} {{ 'a-b-c'.rsplit('-', 1) }}",
        "b x bc ['a-b', 'c']",
    );
    check(
        "{% for k, v in messages[0].items() %}{% if k == 'z' %}{% continue %}{% endif %}{{ k }} {% endfor %}",
        "role content a ",
    );
    check("{{ strftime_now('%Y') | length }} {{ 'ab'[::-1] }} {{ true | string }}", "4 ba True");
    check("{{ strftime_now('%-d %B %Y, %H:%M') | length > 12 }}", "True");
    check("  {% if true %}\n  x\n  {% endif %}\ny", "  x\ny");
}

#[test]
fn pieces_of_templates_render_as_in_jinja2() {
    let file: Value = serde_json::from_str(include_str!("../../fixtures/inputs/chat/snippets.json")).unwrap();
    let folder = Folder::chat();
    let row = json!({"messages": file["messages"]}).to_string();
    let mut wrong = Vec::new();
    for snippet in file["snippets"].as_array().unwrap() {
        let (source, want) = (snippet[0].as_str().unwrap(), snippet[1].as_str().unwrap());
        folder.write("chat_template.jinja", format!("{source}{{% generation %}}.{{% endgeneration %}}"));
        let got = folder.examples(&row).map(|e| folder.decode(&e[0].ids));
        if got.as_deref() != Ok(want) {
            wrong.push(format!("{source:?}\n  want {want:?}\n  got  {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
