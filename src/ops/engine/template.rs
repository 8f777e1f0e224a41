//! Shaders with marked parts: the lines between `//#name` and `//#end` of a file that is valid as it stands give way to others, those
//! between `//@name` and `//@end` may stand twice.

/// The file with each of these parts replaced.
pub fn fill(template: &str, parts: &[(&str, &str)]) -> String {
    parts.iter().fold(template.to_string(), |text, (name, with)| replace(&text, name, with))
}

fn replace(template: &str, name: &str, with: &str) -> String {
    let (open, close) = (format!("//#{name}\n"), "//#end");
    let start = template.find(&open).unwrap_or_else(|| panic!("the template marks '{name}'")) + open.len();
    let end = start + template[start..].find(close).unwrap_or_else(|| panic!("the template closes '{name}'"));
    let end = template[..end].rfind('\n').map_or(end, |i| i + 1).max(start);
    format!("{}{with}{}", &template[..start], &template[end..])
}

/// The file with the lines of this name followed by a copy of themselves, in a scope of its own that begins with `first`, and with
/// these words (names, or names with a field) in place of others.
pub fn twice(template: &str, name: &str, first: &str, words: &[(&str, &str)]) -> String {
    let (open, close) = (format!("//@{name}\n"), "//@end");
    let start = template.find(&open).unwrap_or_else(|| panic!("the template marks '{name}'")) + open.len();
    let end = start + template[start..].find(close).unwrap_or_else(|| panic!("the template closes '{name}'"));
    let copy = words.iter().fold(template[start..end].to_string(), |text, (word, with)| exchange(&text, word, with));
    format!("{}{{\n{first}{copy}}}\n{}", &template[..end], &template[end..])
}

/// The text with another word for every `word` that is not a part of a longer one.
pub fn exchange(text: &str, word: &str, with: &str) -> String {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let whole = !part(before.chars().next_back()) && !part(after.chars().next());
        out += before;
        out += if whole { with } else { word };
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::{fill, twice};

    #[test]
    fn lines_stand_twice_with_words_exchanged() {
        let template = "//@one\nload_a(params.k, params.k4, a);\n//@end\nb\n";
        let got = twice(template, "one", "let c = 1;\n", &[("load_a", "load_c"), ("params.k", "params.n"), ("a", "d")]);
        let copy = "{\nlet c = 1;\nload_c(params.n, params.k4, d);\n}\n";
        assert_eq!(got, format!("//@one\nload_a(params.k, params.k4, a);\n{copy}//@end\nb\n"));
    }

    #[test]
    fn marked_lines_give_way_and_no_others() {
        let template = "a\n//#one\nb\nc\n    //#end\nd\n//#two\n//#end\n";
        let got = fill(template, &[("two", "z\n"), ("one", "    x\n")]);
        assert_eq!(got, "a\n//#one\n    x\n    //#end\nd\n//#two\nz\n//#end\n");
    }
}
