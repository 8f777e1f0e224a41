//! Rewrites shaders. Once bindings are known, operands in a buffer that the kernel also writes are declared writable, because a
//! dispatch may not use one buffer in two ways. And a kernel becomes one that does several jobs.

use crate::ops::exchange;

/// How a binding is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Uniform,
    Read,
    ReadWrite,
}

/// The source with binding `i` declared as `access[i]` says.
pub fn readable(source: &str, access: &[Access]) -> String {
    let mut out = source.to_string();
    for (i, _) in access.iter().enumerate().filter(|(_, a)| **a == Access::ReadWrite) {
        let declared = format!("@binding({i}) var<storage, read> ");
        out = out.replace(&declared, &format!("@binding({i}) var<storage, read_write> "));
    }
    out
}

/// A storage buffer as a kernel declares it.
struct Declared<'a> {
    binding: usize,
    name: &'a str,
    /// Bytes of one element.
    bytes: u64,
}

/// The storage buffers of a linked source, by binding; `None` if one has elements of another size than a word's, two's or four's.
fn buffers(source: &str) -> Option<Vec<Declared<'_>>> {
    let lines = source.lines().filter_map(|line| line.strip_prefix("@group(0) @binding("));
    let storage = lines.filter(|line| line.contains("var<storage"));
    let declared = storage.map(|line| {
        let (binding, rest) = line.split_once(')')?;
        let (_, rest) = rest.split_once("> ")?;
        let (name, ty) = rest.split_once(": array<")?;
        let bytes = match ty.strip_suffix(">;")? {
            "f32" | "u32" | "i32" => 4,
            "vec2<u32>" => 8,
            "vec4<f32>" | "vec4<u32>" | "vec4<i32>" => 16,
            _ => return None,
        };
        Some(Declared { binding: binding.parse().ok()?, name, bytes })
    });
    let mut all = declared.collect::<Option<Vec<Declared>>>()?;
    all.sort_by_key(|d| d.binding);
    all.iter().enumerate().all(|(i, d)| d.binding == i + 1).then_some(all)
}

/// The bytes of one element of each storage buffer of a linked source that [`batched`] takes.
pub fn element_bytes(source: &str) -> Vec<u64> {
    buffers(source).into_iter().flatten().map(|d| d.bytes).collect()
}

/// A linked source as a kernel of several jobs: binding 0 is a table with one entry for each, of its grid, the number of workgroups of
/// the jobs before it, the first element of each of its buffers, and its parameters. Workgroups stand in one row. `None` for kernels with
/// barriers, which must be seen to be reached by all invocations or none.
pub fn batched(source: &str, jobs: usize) -> Option<String> {
    const PARAMS: &str = "@group(0) @binding(0) var<uniform> params: Params;\n";
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.map(|line| format!("{line}\n")).collect();
    let refused = ["workgroupBarrier", "storageBarrier", "var<workgroup>", "coop_mat", "atomic"];
    if refused.iter().any(|word| code.contains(word)) || !code.contains(PARAMS) {
        return None;
    }
    let code = code.replace(PARAMS, "");
    let buffers = buffers(&code)?;
    let entry = code.find("@compute @workgroup_size(")?;
    let open = entry + code[entry..].find("fn main(")?;
    let close = open + code[open..].find(") {\n")?;
    let size = code[entry..open].trim().strip_prefix("@compute @workgroup_size(")?.strip_suffix(')')?;
    let mut arguments = String::new();
    let mut begin = format!(
        "    let count_ = vec3<u32>({});\n",
        size.split(", ")
            .chain(std::iter::repeat("1u"))
            .take(3)
            .map(|x| format!("u32({x})"))
            .collect::<Vec<_>>()
            .join(", ")
    );
    begin += "    for (var j_ = 1u; j_ < JOBS_; j_ = j_ + 1u) {\n        if (id_.x >= jobs_[j_].grid.w) {\n            job_ = j_;\n        }\n    }\n";
    begin += "    let grid_ = jobs_[job_].grid;\n    let at_ = id_.x - grid_.w;\n";
    begin += "    let group_ = vec3<u32>(at_ % grid_.x, at_ / grid_.x % grid_.y, at_ / grid_.x / grid_.y);\n";
    for (i, _) in buffers.iter().enumerate() {
        begin += &format!("    base{i}_ = jobs_[job_].bases[{}][{}];\n", i / 4, i % 4);
    }
    let mut local = "";
    for argument in code[open + "fn main(".len()..close].split(',').map(str::trim).filter(|a| !a.is_empty()) {
        let (builtin, rest) = argument.strip_prefix("@builtin(")?.split_once(") ")?;
        let (name, _) = rest.split_once(':')?;
        match builtin {
            "workgroup_id" => begin += &format!("    let {name} = group_;\n"),
            "num_workgroups" => begin += &format!("    let {name} = grid_.xyz;\n"),
            "global_invocation_id" => {
                local = "    @builtin(local_invocation_id) local_: vec3<u32>,\n";
                begin += &format!("    let {name} = group_ * count_ + local_;\n");
            }
            _ => arguments += &format!("    {argument},\n"),
        }
    }
    if !local.is_empty() && arguments.contains("local_invocation_id") {
        return None;
    }
    let bases = buffers.len().div_ceil(4);
    let mut table = format!(
        "struct Job_ {{\n    grid: vec4<u32>,\n    bases: array<vec4<u32>, {bases}>,\n    params: Params,\n}}\n\nconst JOBS_: u32 = {jobs}u;\n\n"
    );
    table += &format!("@group(0) @binding(0) var<uniform> jobs_: array<Job_, {jobs}>;\n\nvar<private> job_: u32;\n");
    (0..buffers.len()).for_each(|i| table += &format!("var<private> base{i}_: u32;\n"));
    let body = |text: &str| {
        let text = exchange(text, "params", "jobs_[job_].params");
        buffers.iter().enumerate().fold(text, |text, (i, d)| indexed(&text, d.name, &format!("base{i}_ + ")))
    };
    let (before, after) = (body(&code[..entry]), body(&code[close + ") {\n".len()..]));
    Some(format!(
        "{before}{table}\n@compute @workgroup_size({size})\nfn main(\n    @builtin(workgroup_id) id_: vec3<u32>,\n{local}{arguments}) {{\n{begin}{after}"
    ))
}

/// The text with `more` in front of every index of the array `name`.
fn indexed(text: &str, name: &str, more: &str) -> String {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let (mut out, mut rest) = (String::new(), text);
    let opening = format!("{name}[");
    while let Some(at) = rest.find(&opening) {
        let (before, inside) = rest.split_at(at + opening.len());
        out += before;
        rest = inside;
        if before[..at].chars().next_back().is_some_and(part) {
            continue;
        }
        let mut depth = 1;
        let end = rest.find(|c| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            depth == 0
        });
        let (index, after) = rest.split_at(end.unwrap_or(rest.len()));
        out += &format!("{more}({})", indexed(index, name, more));
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::{Access, batched, element_bytes, indexed, readable};

    #[test]
    fn only_the_named_bindings_become_writable() {
        let source = "@group(0) @binding(1) var<storage, read> a: array<f32>;\n\
                      @group(0) @binding(2) var<storage, read> b: array<f32>;\n\
                      @group(0) @binding(3) var<storage, read_write> c: array<f32>;\n";
        let got = readable(source, &[Access::Uniform, Access::Read, Access::ReadWrite, Access::ReadWrite]);
        assert_eq!(got, source.replace("binding(2) var<storage, read>", "binding(2) var<storage, read_write>"));
    }

    #[test]
    fn indices_are_moved_wherever_they_stand() {
        assert_eq!(
            indexed("let q = a[b[i] + a[j]]; x.a[0]; aa[1]", "a", "n + "),
            "let q = a[n + (b[i] + a[n + (j)])]; x.a[0]; aa[1]"
        );
    }

    #[test]
    fn a_kernel_without_barriers_does_several_jobs() {
        let source = "struct Params {\n    n: u32,\n}\n@group(0) @binding(0) var<uniform> params: Params;\n\
                      @group(0) @binding(1) var<storage, read> a: array<f32>;\n\
                      @group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;\n\
                      @compute @workgroup_size(64)\nfn main(@builtin(global_invocation_id) at: vec3<u32>) {\n\
                      if (at.x < params.n) {\n y[at.x] = vec4<f32>(a[at.x]);\n }\n}\n";
        let many = batched(source, 3).expect("there is no barrier");
        naga::front::wgsl::parse_str(&many).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&many)));
        assert!(many.contains("y[base1_ + (at.x)] = vec4<f32>(a[base0_ + (at.x)]);"), "{many}");
        assert_eq!(element_bytes(source), [4, 16]);
        assert!(batched(&source.replace("if (", "workgroupBarrier(); if ("), 3).is_none());
    }

    fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn every_kernel_without_barriers_is_valid_for_several_jobs() {
        use naga::valid::{Capabilities, ValidationFlags, Validator};
        let mut count = 0;
        for file in files(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")) {
            let source = crate::ops::link(&std::fs::read_to_string(&file).unwrap());
            let Some(many) = batched(&source, 3) else { continue };
            let all = [&[Access::Uniform][..], &[Access::ReadWrite; 9]].concat();
            let many = readable(&many, &all);
            let module = naga::front::wgsl::parse_str(&many).map_err(|e| e.emit_to_string(&many));
            let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
            let valid = module.and_then(|m| validator.validate(&m).map_err(|e| e.emit_to_string(&many)));
            assert!(valid.is_ok(), "{}: {}", file.display(), valid.unwrap_err());
            count += 1;
        }
        assert!(count > 12, "only {count} kernels");
    }
}
