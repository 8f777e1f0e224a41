//! Gives a kernel the functions that it calls: those of `shaders/functions.wgsl`, and what they call.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

/// A function of the library.
struct Function {
    /// Its text, with the comment above it.
    text: &'static str,
    /// The functions that it calls, by number.
    calls: Vec<usize>,
}

struct Library {
    functions: Vec<Function>,
    numbers: HashMap<&'static str, usize>,
}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let source = include_str!("../../../shaders/functions.wgsl");
    // Paragraphs, but for the one at the file's head, each of which ends with the brace of one function.
    let texts: Vec<&'static str> = source.split_inclusive("\n}\n").filter(|t| t.contains("fn ")).collect();
    let name = |text: &&'static str| {
        let at = text.find("\nfn ").map_or(3, |i| i + 4);
        text[at..].split('(').next().unwrap_or_default()
    };
    let numbers: HashMap<&'static str, usize> = texts.iter().enumerate().map(|(i, t)| (name(t), i)).collect();
    let function = |text: &&'static str| {
        let calls = called(text).filter(|n| *n != name(text)).filter_map(|n| numbers.get(n).copied()).collect();
        Function { text, calls }
    };
    Library { functions: texts.iter().map(function).collect(), numbers }
});

/// The names that stand before an opening parenthesis.
fn called(source: &str) -> impl Iterator<Item = &str> {
    source.match_indices('(').filter_map(|(at, _)| {
        let before = &source[..at];
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = &before[before.rfind(|c| !part(c)).map_or(0, |i| i + 1)..];
        (!name.is_empty()).then_some(name)
    })
}

/// The source with every function of the library that it calls at its end.
pub fn link(source: &str) -> String {
    let library = &*LIBRARY;
    let mut wanted: BTreeSet<usize> = BTreeSet::new();
    let mut open: Vec<usize> = called(source).filter_map(|n| library.numbers.get(n).copied()).collect();
    while let Some(i) = open.pop() {
        if wanted.insert(i) {
            open.extend(&library.functions[i].calls);
        }
    }
    wanted.into_iter().fold(source.to_string(), |text, i| text + library.functions[i].text)
}

#[cfg(test)]
mod tests {
    use super::link;

    #[test]
    fn a_kernel_gets_what_it_calls_and_what_that_calls() {
        let linked = link("fn main() { let y = tanh_vec4_(x) + other(x); }\n");
        let defined: Vec<&str> = linked.lines().filter_map(|l| l.strip_prefix("fn ")?.split('(').next()).collect();
        assert_eq!(defined, ["main", "is_nan_", "tanh_", "tanh_vec4_"]);
        assert_eq!(link("fn main() {}\n"), "fn main() {}\n");
    }
}
