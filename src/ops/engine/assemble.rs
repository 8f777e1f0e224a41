//! How a kernel's source comes about. Every file of `shaders/` is a WGSL module that validates alone. Its `override` constants vary
//! sizes and flags; three kinds of comment line say what else may vary:
//!
//! - `//#import shared/FILE.wgsl` brings the declarations of `shaders/shared/FILE.wgsl` that the kernel names, and what those name
//!   ([`link`]). [`import_instead`] takes another file with the same declarations.
//! - `//#slot NAME` to `//#end`: lines that others replace ([`fill`]). What stands there is the default.
//! - `//#twice NAME` to `//#end twice`: lines that may stand twice, with other names the second time ([`twice`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

const IMPORT: &str = "//#import ";

/// The files that kernels import.
const SHARED: &[(&str, &str)] = &[
    ("shared/attention_scores.wgsl", include_str!("../../../shaders/shared/attention_scores.wgsl")),
    ("shared/chunks.wgsl", include_str!("../../../shaders/shared/chunks.wgsl")),
    ("shared/edges.wgsl", include_str!("../../../shaders/shared/edges.wgsl")),
    ("shared/eight_rows.wgsl", include_str!("../../../shaders/shared/eight_rows.wgsl")),
    ("shared/halves.wgsl", include_str!("../../../shaders/shared/halves.wgsl")),
    ("shared/math.wgsl", include_str!("../../../shaders/shared/math.wgsl")),
    (SUBGROUP_REDUCTIONS, include_str!("../../../shaders/shared/subgroup_reductions.wgsl")),
    ("shared/windows.wgsl", include_str!("../../../shaders/shared/windows.wgsl")),
    ("shared/words.wgsl", include_str!("../../../shaders/shared/words.wgsl")),
    (WORKGROUP_REDUCTIONS, include_str!("../../../shaders/shared/workgroup_reductions.wgsl")),
];

/// Reductions over a workgroup, and what takes their place on adapters with subgroups.
pub const WORKGROUP_REDUCTIONS: &str = "shared/workgroup_reductions.wgsl";
pub const SUBGROUP_REDUCTIONS: &str = "shared/subgroup_reductions.wgsl";

/// The file with each of these slots filled.
pub fn fill(source: &str, slots: &[(&str, &str)]) -> String {
    slots.iter().fold(source.to_string(), |text, (name, with)| {
        let [start, end] = between(&text, &format!("//#slot {name}\n"), "//#end\n");
        format!("{}{with}{}", &text[..start], &text[end..])
    })
}

/// The file with the lines of this name followed by a copy of themselves, in a scope of its own that begins with `first`, and with
/// these words (names, or names with a field) in place of others.
pub fn twice(source: &str, name: &str, first: &str, words: &[(&str, &str)]) -> String {
    let [start, end] = between(source, &format!("//#twice {name}\n"), "//#end twice\n");
    let copy = words.iter().fold(source[start..end].to_string(), |text, (word, with)| exchange(&text, word, with));
    format!("{}{{\n{first}{copy}}}\n{}", &source[..end], &source[end..])
}

/// Where the lines between two marks begin and end.
fn between(source: &str, open: &str, close: &str) -> [usize; 2] {
    let start = source.find(open).unwrap_or_else(|| panic!("the file has '{}'", open.trim())) + open.len();
    let end = start + source[start..].find(close).unwrap_or_else(|| panic!("the file closes '{}'", open.trim()));
    [start, source[..end].rfind('\n').map_or(end, |i| i + 1).max(start)]
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

/// The file with another import, if it has this one.
pub fn import_instead(source: &str, file: &str, other: &str) -> Option<String> {
    let line = format!("{IMPORT}{file}\n");
    source.contains(&line).then(|| source.replace(&line, &format!("{IMPORT}{other}\n")))
}

/// The source with every declaration that it names of the files that it imports, and of those that they import, at its end.
pub fn link(source: &str) -> String {
    let mut files: Vec<&File> = Vec::new();
    let mut open: Vec<&str> = imports(source).collect();
    while let Some(name) = open.pop() {
        let file = FILES.get(name).unwrap_or_else(|| panic!("there is no shaders/{name}"));
        if !files.iter().any(|f| std::ptr::eq(*f, file)) {
            files.push(file);
            open.extend(&file.imports);
        }
    }
    let items = || files.iter().flat_map(|f| &f.items);
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = names(source).collect();
    while let Some(name) = open.pop() {
        if let Some(item) = items().find(|i| i.name == name)
            && wanted.insert(name)
        {
            open.extend(&item.names);
        }
    }
    items().filter(|i| wanted.contains(i.name)).fold(source.to_string(), |text, i| text + "\n" + i.text)
}

/// A file of `shaders/shared/`.
struct File {
    imports: Vec<&'static str>,
    items: Vec<Item>,
}

/// A declaration, with the comment above it.
struct Item {
    name: &'static str,
    text: &'static str,
    /// The names that stand in it.
    names: BTreeSet<&'static str>,
}

static FILES: LazyLock<BTreeMap<&'static str, File>> = LazyLock::new(|| {
    let file = |source: &'static str| File { imports: imports(source).collect(), items: items(source) };
    SHARED.iter().map(|(name, source)| (*name, file(source))).collect()
});

fn imports(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| line.strip_prefix(IMPORT))
}

/// The declarations of a file: each ends with a line that is a closing brace, or in its first line.
fn items(source: &'static str) -> Vec<Item> {
    let mut items = Vec::new();
    // Where a declaration began, with its comment; its name, once that was read; and the end of the line before.
    let (mut start, mut name, mut at) = (0, None, 0);
    for line in source.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        if name.is_none() {
            match line {
                "\n" => start = at,
                _ if line.starts_with("//") => {}
                _ => name = Some(declared(line)),
            }
        }
        let ends = line == "}\n" || source[begin..at].ends_with(";\n") && !line.starts_with(' ');
        if ends && let Some(name) = name.take() {
            let text = &source[start..at];
            items.push(Item { name, text, names: names(text).collect() });
            start = at;
        }
    }
    items
}

/// The name that a declaration's first line gives.
fn declared(line: &str) -> &str {
    let after = match line.find("var<") {
        Some(var) => &line[var + line[var..].find('>').unwrap_or(0) + 1..],
        None => line.split_once(' ').map_or(line, |(_, rest)| rest),
    };
    after.trim_start().split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Every name in some code but those of fields.
fn names(source: &str) -> impl Iterator<Item = &str> {
    source.lines().flat_map(|line| {
        let line = line.split("//").next().unwrap_or_default();
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| !w.is_empty());
        words.filter(|word| {
            let at = word.as_ptr() as usize - line.as_ptr() as usize;
            !line[..at].ends_with('.')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stand_twice_with_words_exchanged() {
        let source = "//#twice one\nload_a(params.k, params.k4, a);\n//#end twice\nb\n";
        let got = twice(source, "one", "let c = 1;\n", &[("load_a", "load_c"), ("params.k", "params.n"), ("a", "d")]);
        let copy = "{\nlet c = 1;\nload_c(params.n, params.k4, d);\n}\n";
        assert_eq!(got, format!("//#twice one\nload_a(params.k, params.k4, a);\n{copy}//#end twice\nb\n"));
    }

    #[test]
    fn slots_are_filled_and_nothing_else_changes() {
        let source = "a\n//#slot one\nb\nc\n    //#end\nd\n//#slot two\n//#end\n";
        let got = fill(source, &[("two", "z\n"), ("one", "    x\n")]);
        assert_eq!(got, "a\n//#slot one\n    x\n    //#end\nd\n//#slot two\nz\n//#end\n");
    }

    #[test]
    fn a_kernel_gets_what_it_names_and_what_that_names() {
        let declared =
            |source: &str| -> Vec<String> { items(source.to_string().leak()).iter().map(|i| i.name.into()).collect() };
        let math = link("//#import shared/math.wgsl\nfn main() { let y = tanh_vec4_(x) + other(x.exp_); }\n");
        assert_eq!(declared(&math[math.find("\n\n").unwrap()..]), ["is_nan_", "tanh_", "tanh_vec4_"]);
        let scores = link("//#import shared/attention_scores.wgsl\nfn main() { ruled(x); /* bias */ }\n");
        let of_scores = declared(&scores[scores.find("\n\n").unwrap_or(0)..]);
        assert!(of_scores.ends_with(&["is_nan_".into(), "tanh_".into(), "tanh_vec4_".into()]), "{of_scores:?}");
        assert_eq!(link("fn main() {}\n"), "fn main() {}\n");
    }

    #[test]
    fn declarations_end_where_the_next_begins() {
        let all = items(
            "// Head.\n\noverride A: u32 = 64;\n// Of B.\n@group(0) @binding(4) var<storage, read> b: u32;\nstruct C {\n    d: u32,\n}\n\nfn e() {\n    f();\n}\n",
        );
        let names: Vec<_> = all.iter().map(|i| (i.name, i.text.lines().count())).collect();
        assert_eq!(names, [("A", 1), ("b", 2), ("C", 3), ("e", 3)]);
    }

    #[test]
    fn another_file_takes_an_imports_place() {
        let source = format!("{IMPORT}{WORKGROUP_REDUCTIONS}\nfn main() {{ total(0u, 1.0); }}\n");
        let other = import_instead(&source, WORKGROUP_REDUCTIONS, SUBGROUP_REDUCTIONS).expect("it is imported");
        assert!(link(&other).contains("subgroupAdd") && !link(&source).contains("subgroupAdd"));
        assert_eq!(import_instead("fn main() {}\n", WORKGROUP_REDUCTIONS, SUBGROUP_REDUCTIONS), None);
    }
}
