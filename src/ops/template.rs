//! Shaders with marked parts: the lines between `//#name` and `//#end` of a file that is valid as it stands give way to others.

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

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn marked_lines_give_way_and_no_others() {
        let template = "a\n//#one\nb\nc\n    //#end\nd\n//#two\n//#end\n";
        let got = fill(template, &[("two", "z\n"), ("one", "    x\n")]);
        assert_eq!(got, "a\n//#one\n    x\n    //#end\nd\n//#two\nz\n//#end\n");
    }
}
