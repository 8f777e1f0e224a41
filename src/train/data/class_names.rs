//! What classes are called: by the model, and by a data file that numbers its own.

use super::{Options, special};
use serde_json::Value;
use std::collections::BTreeMap;

/// What the model's classes are called: as the options say, or config.json beside the model. Empty where that is not known.
pub fn of_model(options: &Options) -> Vec<String> {
    if !options.label_names.is_empty() {
        return options.label_names.clone();
    }
    let Some(folder) = &options.beside else { return vec![] };
    // A config.json that cannot be read says nothing about names.
    let config = special::object(&folder.join("config.json")).ok().flatten().unwrap_or_default();
    let Some(by_id) = config.get("id2label").and_then(Value::as_object) else { return vec![] };
    let numbered = by_id.iter().filter_map(|(id, name)| Some((id.parse::<usize>().ok()?, name.as_str()?.to_string())));
    let names: BTreeMap<usize, String> = numbered.collect();
    match names.len() == by_id.len() && names.keys().copied().eq(0..names.len()) {
        true => names.into_values().collect(),
        false => vec![],
    }
}

/// The model's class for each class of a file, both by name. `None` where the numbers are the same, or the model's names say nothing.
/// Names that the model does not have are an error.
pub fn matched(file: &[String], model: &[String]) -> Result<Option<Vec<i32>>, String> {
    // What transformers calls classes that no one has named.
    let nameless = model.iter().enumerate().all(|(i, name)| *name == format!("LABEL_{i}"));
    if file.is_empty() || nameless {
        return Ok(None);
    }
    let same = |a: &String, b: &String| a.trim().eq_ignore_ascii_case(b.trim());
    let found = |name: &String| {
        let exact = model.iter().position(|m| m == name);
        let folded: Vec<usize> = (0..model.len()).filter(|&i| same(&model[i], name)).collect();
        exact.or(if let [one] = folded[..] { Some(one) } else { None }).map(|i| i as i32)
    };
    let classes: Option<Vec<i32>> = file.iter().map(found).collect();
    match classes {
        Some(classes) if classes.iter().copied().eq(0..file.len() as i32) => Ok(None),
        Some(classes) => Ok(Some(classes)),
        None => Err(format!(
            "it numbers its classes in the order {}, and the model's are {}\n\
             hint: --label-names {} says that they are the same, in this order",
            file.join(", "),
            model.join(", "),
            file.join(",")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::matched;

    #[test]
    fn classes_are_matched_by_name() {
        let names = |text: &str| text.split(',').map(String::from).collect::<Vec<_>>();
        let check = |file: &str, model: &str, want: Option<Vec<i32>>| {
            assert_eq!(matched(&names(file), &names(model)), Ok(want), "{file} / {model}");
        };
        check("neg,pos", "NEG,POS", None);
        check("neg,pos", "LABEL_0,LABEL_1", None);
        check("neg,pos", "POS,NEG", Some(vec![1, 0]));
        check("pos,neg", "neg,neutral,pos", Some(vec![2, 0]));
        let error = matched(&names("neg,pos"), &names("NEGATIVE,POSITIVE")).unwrap_err();
        assert!(error.contains("the order neg, pos, and the model's are NEGATIVE, POSITIVE"), "{error}");
        assert!(error.contains("hint: --label-names neg,pos"), "{error}");
        assert_eq!(matched(&names("a,b"), &[]), Ok(None));
    }
}
