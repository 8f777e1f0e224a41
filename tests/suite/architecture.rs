//! The layout's rules, read off the sources: who may import whom, and which crate has one user.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Module and what it may import of ours. docs/architecture.md says why.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("file_kind", &[]),
    ("settings", &[]),
    ("ir", &[]),
    ("onnx", &["file_kind"]),
    ("adapter", &["file_kind"]),
    ("ops", &["ir"]),
    ("optim", &["ir", "settings"]),
    ("plan", &["ir", "ops"]),
    ("adapters", &["onnx"]),
    ("inject", &["onnx", "adapters", "adapter"]),
    ("merge", &["onnx", "adapters", "adapter"]),
    ("lower", &["onnx", "ir", "ops"]),
    ("passes", &["ir", "ops", "plan"]),
    ("device", &["ir", "ops", "plan"]),
    ("train", &["ir", "plan", "device", "adapter", "optim", "file_kind", "settings"]),
    ("calibrate", &["ir", "plan", "device", "adapter", "optim"]),
    ("verify", &["onnx"]),
];

/// Crate and the one module that uses it.
const ONE_USER: &[(&str, &str)] = &[
    ("onnx_protobuf", "onnx"),
    ("petgraph", "onnx"),
    ("wgpu", "device"),
    ("etcetera", "device"),
    ("tract_onnx", "verify"),
    ("clap", "cli"),
    ("anyhow", "cli"),
    ("tokenizers", "train"),
    ("gemm", "ops"),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        match entry.is_dir() {
            true => sources(&entry, out),
            false if entry.extension().is_some_and(|e| e == "rs") => out.push(entry),
            false => {}
        }
    }
}

/// The code of each top-level module: every file of it without comments.
fn modules() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let mut files = Vec::new();
    sources(root, &mut files);
    let mut out: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    for file in files {
        let inside = file.strip_prefix(root).unwrap();
        let first = inside.iter().next().unwrap().to_string_lossy();
        let module = first.strip_suffix(".rs").unwrap_or(&first).to_string();
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        out.entry(module).or_default().push((file, code));
    }
    out
}

/// The modules of ours that a file names as `crate::module`.
fn imports(code: &str) -> BTreeSet<String> {
    let name = |at: usize| code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    code.match_indices("crate::").map(|(i, m)| name(i + m.len())).filter(|n| !n.is_empty()).collect()
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let modules = modules();
    let names: BTreeSet<&str> = modules.keys().map(String::as_str).collect();
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_IMPORT {
        for (file, code) in modules.get(*module).unwrap_or_else(|| panic!("there is no module '{module}'")) {
            for import in imports(code) {
                let fine = import == *module || allowed.contains(&import.as_str()) || !names.contains(import.as_str());
                if !fine {
                    wrong.push(format!("{}: {module} may not import {import}", file.display()));
                }
            }
        }
    }
    // Of the rest, pipeline may not reach up to cli and api, the two may not reach each other, and nothing else stands beside them.
    let rest = ["pipeline", "cli", "api", "internals", "lib", "main"];
    let listed: BTreeSet<&str> = MAY_IMPORT.iter().map(|m| m.0).chain(rest).collect();
    assert_eq!(names.difference(&listed).collect::<Vec<_>>(), Vec::<&&str>::new(), "a module without a row");
    for (module, above) in [("pipeline", "cli"), ("pipeline", "api"), ("cli", "api"), ("api", "cli")] {
        for (file, _) in modules[module].iter().filter(|(_, code)| imports(code).contains(above)) {
            wrong.push(format!("{}: {module} may not import {above}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_with_one_user_have_one() {
    let mut wrong = Vec::new();
    for (module, files) in modules() {
        for (file, code) in files {
            for (name, user) in ONE_USER.iter().filter(|(_, user)| *user != module) {
                if code.contains(&format!("use {name}")) || code.contains(&format!("{name}::")) {
                    wrong.push(format!("{}: only {user} may use {name}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_command_line_prints_and_exits() {
    let mut wrong = Vec::new();
    for (module, files) in modules().into_iter().filter(|(m, _)| m != "cli" && m != "main") {
        for (file, code) in files {
            for call in ["println!", "eprintln!", "print!", "process::exit", "dbg!"] {
                if code.contains(call) {
                    wrong.push(format!("{}: {module} calls {call}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_guarantees() {
    for (file, _) in modules().into_values().flatten() {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{} does not open with //!", file.display());
    }
}

/// Modules that import each other in a circle, and why they may.
const CIRCLES: &[(&[&str], &str)] = &[
    (&["adapters::fit", "adapters::names"], "a fit reads names, whose errors are the fit's"),
    (
        &[
            "adapters::blocks",
            "adapters::config",
            "adapters::emission",
            "adapters::emitter",
            "adapters::entry",
            "adapters::init",
            "adapters::residual",
            "adapters::values",
        ],
        "an entry's functions take the configuration and the emitter, and both name the entry",
    ),
    (
        &[
            "device::gpu",
            "device::gpu::adapter",
            "device::gpu::batching",
            "device::gpu::cooperative",
            "device::gpu::pipeline",
            "device::gpu::submit",
            "device::gpu::tuning",
        ],
        "parts of one type, whose fields stand in mod.rs",
    ),
    (&["onnx::external_data", "onnx::model", "onnx::read"], "external data fails with the reader's error"),
    (&["passes", "passes::line"], "the line stands in mod.rs, and its runner reads it"),
    (
        &["pipeline::compile", "pipeline::integers", "pipeline::weighing"],
        "what is found on the host compiles parts again",
    ),
    (&["pipeline::surveying", "pipeline::training"], "a survey runs what is to be trained"),
    (
        &["train", "train::checkpoint", "train::metrics", "train::run", "train::session"],
        "errors and settings of all stand in mod.rs, which also runs them",
    ),
    (
        &[
            "train::data",
            "train::data::chat",
            "train::data::class_names",
            "train::data::columns",
            "train::data::example",
            "train::data::examples",
            "train::data::formats",
            "train::data::input",
            "train::data::labels",
            "train::data::made",
            "train::data::rows",
            "train::data::sequences",
            "train::data::sink",
            "train::data::text",
            "train::data::tokenizer",
            "train::data::tuples",
        ],
        "errors and options of all stand in mod.rs, which also reads with them",
    ),
];

/// A module's own code: without comments and tests.
struct Source {
    path: Vec<String>,
    code: String,
}

/// Every module under src/, by its path without `crate`.
fn tree() -> BTreeMap<String, Source> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let mut out = BTreeMap::new();
    for (file, code) in modules().into_values().flatten() {
        let inside = file.strip_prefix(root).unwrap().with_extension("");
        let mut path: Vec<String> = inside.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        if path.last().is_some_and(|p| p == "mod") {
            path.pop();
        }
        let code = code.split("#[cfg(test)]\nmod ").next().unwrap().to_string();
        out.insert(path.join("::"), Source { path, code });
    }
    out
}

/// The paths of one `use`: its braces multiplied out, other names left out.
fn expanded(text: &str) -> Vec<String> {
    let text = text.trim();
    let Some(open) = text.find('{') else {
        return vec![text.split_whitespace().next().unwrap_or_default().to_string()];
    };
    let (before, inside) = (&text[..open], &text[open + 1..text.rfind('}').unwrap()]);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in inside.chars() {
        depth += (c == '{') as i32 - (c == '}') as i32;
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            c => parts.last_mut().unwrap().push(c),
        }
    }
    let parts = parts.iter().filter(|p| !p.trim().is_empty());
    parts.flat_map(|p| expanded(p)).map(|p| format!("{before}{p}")).collect()
}

/// The paths of a module's `use` lines, and whether each gives its name on.
fn uses(code: &str) -> Vec<(String, bool)> {
    let mut out = Vec::new();
    for (i, _) in code.match_indices("use ") {
        let line = code[..i].rfind('\n').map_or(0, |n| n + 1);
        let visible = code[line..i].trim();
        if visible.is_empty() || visible.starts_with("pub") {
            let text = &code[i + 4..i + code[i..].find(';').unwrap_or(0).max(4)];
            out.extend(expanded(text).into_iter().map(|p| (p, !visible.is_empty())));
        }
    }
    out
}

/// Every path written in the code.
fn written(code: &str) -> Vec<String> {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.split(|c| !part(c)).filter(|p| p.contains("::") && !p.ends_with("::")).map(str::to_string).collect()
}

/// A path as it is from the root of the crate, if it begins at a module of ours.
fn absolute(tree: &BTreeMap<String, Source>, from: &Source, path: &str) -> Option<Vec<String>> {
    let mut parts: Vec<String> = path.split("::").map(str::to_string).collect();
    let mut base = from.path.clone();
    match parts[0].as_str() {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            while parts.first().is_some_and(|p| p == "super") {
                base.pop();
                parts.remove(0);
            }
            base.extend(parts);
            return Some(base);
        }
        child => {
            base.push(child.to_string());
            tree.get(&base.join("::"))?;
            base.pop();
            base.extend(parts);
            return Some(base);
        }
    }
    base.extend(parts.into_iter().skip(1));
    Some(base)
}

/// The module that a path leads to, through names that others give on.
fn leads_to(tree: &BTreeMap<String, Source>, given_on: &GivenOn, path: &[String]) -> Option<String> {
    for n in (1..=path.len()).rev() {
        let module = path[..n].join("::");
        if tree.contains_key(&module) {
            let on = path.get(n).and_then(|name| given_on.get(&(module.clone(), name.clone())));
            return match on {
                Some(to) => leads_to(tree, given_on, &[&to[..], &path[n + 1..]].concat()),
                None => Some(module),
            };
        }
    }
    None
}

/// Module and name to the path that it stands for.
type GivenOn = BTreeMap<(String, String), Vec<String>>;

/// What each module imports. A name that a folder gives on counts as an import of where it is from, by who uses it. Within ops every
/// path in the code counts, elsewhere those of `use` lines.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let tree = tree();
    let mut given_on = GivenOn::new();
    for (module, source) in &tree {
        for (path, _) in uses(&source.code).into_iter().filter(|(_, on)| *on) {
            if let Some(path) = absolute(&tree, source, &path) {
                given_on.insert((module.clone(), path.last().unwrap().clone()), path);
            }
        }
    }
    let imports = |(module, source): (&String, &Source)| {
        let mut paths: Vec<String> = uses(&source.code).into_iter().filter(|(_, on)| !on).map(|(p, _)| p).collect();
        if source.path[0] == "ops" {
            let code: Vec<&str> = source.code.split(';').filter(|s| !s.trim_start().starts_with("pub use ")).collect();
            paths.extend(written(&code.join(";")));
        }
        let to = paths.iter().filter_map(|p| leads_to(&tree, &given_on, &absolute(&tree, source, p)?));
        (module.clone(), to.filter(|to| to != module).collect())
    };
    tree.iter().map(imports).collect()
}

/// What a module imports, and what that does.
fn reach<'g>(graph: &'g BTreeMap<String, BTreeSet<String>>, from: &'g String) -> BTreeSet<&'g String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(at) = open.pop() {
        open.extend(graph.get(at).into_iter().flatten().filter(|to| seen.insert(*to)));
    }
    seen
}

/// The sets of two or more that reach each other.
fn circles(graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = graph.keys().map(|m| (m, reach(graph, m))).collect();
    let circle = |m: &String| reached[m].iter().filter(|to| reached[**to].contains(m)).map(|s| s.to_string()).collect();
    reached.keys().filter(|m| reached[**m].contains(**m)).map(|m| circle(m)).collect()
}

/// The graph between the files and folders of each folder: what stands deeper counts as its folder.
fn folders(graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in graph.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
        let (a, b): (Vec<&str>, Vec<&str>) = (from.split("::").collect(), to.split("::").collect());
        let shared = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
        if shared < a.len().min(b.len()) {
            let at = |path: &[&str]| path[..=shared].join("::");
            out.entry(at(&b)).or_default();
            out.entry(at(&a)).or_default().insert(at(&b));
        }
    }
    out
}

#[test]
fn modules_import_each_other_in_no_circle() {
    let graph = graph();
    let found: BTreeSet<Vec<String>> = circles(&graph).union(&circles(&folders(&graph))).cloned().collect();
    let listed =
        |circle: &Vec<String>| CIRCLES.iter().any(|(members, _)| circle.iter().all(|m| members.contains(&m.as_str())));
    let new: Vec<&Vec<String>> = found.iter().filter(|c| !listed(c)).collect();
    assert!(new.is_empty(), "modules that import each other in a circle: {new:#?}");
    for (members, _) in CIRCLES {
        let still = found.iter().any(|c| c.iter().all(|m| members.contains(&m.as_str())));
        assert!(still, "{members:?} is no circle any more: take it off the list");
    }
}

#[test]
fn circles_are_found_through_folders() {
    let of = |edges: &[(&str, &str)]| {
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in edges {
            graph.entry(from.to_string()).or_default().insert(to.to_string());
            graph.entry(to.to_string()).or_default();
        }
        graph
    };
    let line = of(&[("a::x", "a::y"), ("a::y", "b"), ("a", "a::x")]);
    assert!(circles(&line).is_empty() && circles(&folders(&line)).is_empty());
    assert_eq!(circles(&of(&[("a", "b"), ("b", "c"), ("c", "b")])), BTreeSet::from([vec!["b".into(), "c".into()]]));
    let through = of(&[("a::x", "b::x"), ("b::y", "a::y")]);
    assert!(circles(&through).is_empty());
    assert_eq!(circles(&folders(&through)), BTreeSet::from([vec!["a".into(), "b".into()]]));
    assert_eq!(expanded("super::{a, b::{self, c as d}}"), ["super::a", "super::b::self", "super::b::c"]);
}

#[test]
fn examples_show_the_library_as_its_users_have_it() {
    // The feature is on where examples are tested, so that they would compile.
    for (file, _) in modules().into_values().flatten() {
        let text = std::fs::read_to_string(&file).unwrap();
        let named = text.lines().find(|l| l.trim_start().starts_with("//") && l.contains("::internals"));
        assert_eq!(named, None, "{}", file.display());
    }
}
