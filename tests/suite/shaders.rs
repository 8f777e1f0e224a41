//! The kernels as text: valid for every backend, and relying on nothing that they do not say.

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use reslora_compile::internals::ir::Type;
use reslora_compile::internals::ops::{self, Dispatch, Gpu, GpuCall, GpuTraits, PRIMITIVES};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What adapters offer: the least, with subgroups of each width there is, and the most.
fn settings() -> Vec<GpuTraits> {
    let mut all = Vec::new();
    for software in [false, true] {
        let least = GpuTraits::least(software);
        all.push(least);
        all.extend([4, 8, 16, 32, 64, 128].map(|width| GpuTraits { subgroup: Some(width), ..least }));
        all.push(GpuTraits { max_invocations: 1024, workgroup_bytes: 65536, subgroup: Some(32), ..least });
    }
    all
}

/// Every kernel that the primitives' samples take, at each setting, with the kernels that a race would try.
fn kernels(mut each: impl FnMut(&Dispatch, GpuTraits)) {
    for traits in settings() {
        for p in PRIMITIVES.iter().filter(|p| !matches!(p.gpu, Gpu::Alias)) {
            for sample in (p.samples)() {
                let types_in: Vec<Type> = sample.inputs.iter().map(|(t, _)| t.clone()).collect();
                let refs: Vec<&Type> = types_in.iter().collect();
                let types_out = (p.infer)(&refs, &sample.attrs).unwrap_or_else(|e| panic!("{}: {e}", p.name));
                let (attrs, types_in, types_out) = (&sample.attrs, &types_in[..], &types_out[..]);
                // Operands as they are, and where kernels can unpack them, as halves.
                let halves: Vec<bool> = (types_in.iter().enumerate())
                    .map(|(i, ty)| ty.is_float() && ops::unpacks(p.name, i, ty.rank()))
                    .collect();
                for packed in [&[][..], &halves] {
                    let call = GpuCall { attrs, types_in, types_out, traits, packed, variant: None };
                    let raced = match p.gpu {
                        Gpu::Tuned { candidates, .. } => candidates(&call),
                        _ => vec![],
                    };
                    for variant in std::iter::once(None).chain(raced.into_iter().map(Some)) {
                        ops::dispatches(p.name, &GpuCall { variant, ..call }).iter().for_each(|d| each(d, traits));
                    }
                }
            }
        }
    }
}

fn parse(name: &str, source: &str, subgroups: bool) -> (naga::Module, ModuleInfo) {
    let module =
        naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(source)));
    // Unpacking halves to f32 is a part of WebGPU that old OpenGL alone lacks.
    let least = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let capabilities = if subgroups { least | Capabilities::SUBGROUP } else { least };
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(source)));
    (module, info)
}

#[test]
fn shaders_are_valid_for_every_backend_and_bind_what_they_declare() {
    let (mut seen, mut texts) = (BTreeSet::new(), Vec::new());
    kernels(|d, traits| {
        let name = d.shader.name;
        let source = ops::link(&d.shader.source);
        let constants: Vec<(&str, u64)> = d.constants.iter().map(|(n, x)| (*n, x.to_bits())).collect();
        if !seen.insert((source.clone(), constants)) {
            return;
        }
        // WGSL has a line for this, which naga does not take.
        let enabled = if source.contains(" = subgroup") { "enable subgroups;\n" } else { "" };
        texts.push((name, format!("{enabled}{source}")));
        let (module, info) = parse(name, &source, traits.subgroup.is_some());
        let bindings = module.global_variables.iter().filter(|(_, v)| v.binding.is_some()).count();
        assert_eq!(bindings, 1 + d.bindings.len(), "{name}");
        assert!(d.bindings.len() <= 8, "{name} binds {} buffers, and WebGPU promises eight", d.bindings.len());
        let uniform = module.global_variables.iter().find(|(_, v)| v.space == naga::AddressSpace::Uniform);
        let size = module.types[uniform.expect("parameters").1.ty].inner.size(module.to_ctx());
        assert_eq!(size as usize, 4 * d.params.len(), "{name}: parameters");

        let constants = d.constants.iter().map(|(n, x)| (n.to_string(), *x)).collect();
        let entry = Some((naga::ShaderStage::Compute, "main"));
        let (module, info) = naga::back::pipeline_constants::process_overrides(&module, &info, entry, &constants)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for (backend, written) in translated(&module, &info) {
            assert!(written.is_ok(), "{name} for {backend}: {}\n{source}", written.unwrap_err());
        }
    });
    assert!(seen.len() > 100, "only {} kernels were tried", seen.len());
    // For other compilers than naga: scripts/check-kernels-in-browser.
    if let Some(path) = std::env::var_os("RESLORA_WRITE_KERNELS") {
        let all: BTreeSet<&(&str, String)> = texts.iter().collect();
        let all: Vec<_> = all.iter().map(|(name, text)| serde_json::json!({"name": name, "source": text})).collect();
        std::fs::write(path, serde_json::to_vec(&all).unwrap()).unwrap();
    }
}

/// What each backend makes of a kernel.
fn translated(module: &naga::Module, info: &ModuleInfo) -> [(&'static str, Result<(), String>); 4] {
    use naga::back::{hlsl, msl, spv, wgsl};
    // Subgroups want SPIR-V 1.3, as Vulkan 1.1 has it.
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    let vulkan = spv::write_vec(module, info, &options, None).map(|_| ()).map_err(|e| e.to_string());
    let options = msl::Options { lang_version: (2, 4), ..Default::default() };
    let metal = msl::write_string(module, info, &options, &Default::default()).map(|_| ()).map_err(|e| e.to_string());
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
    let (mut text, pipeline) = (String::new(), Default::default());
    let dx12 = hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None);
    let dx12 = dx12.map(|_| ()).map_err(|e| e.to_string());
    let browser = wgsl::write_string(module, info, wgsl::WriterFlags::empty()).map(|_| ()).map_err(|e| e.to_string());
    [("Vulkan", vulkan), ("Metal", metal), ("DX12", dx12), ("WGSL", browser)]
}

/// What the head of a kernel's file says that it relies on.
#[derive(Debug, Default, PartialEq)]
struct Relies {
    /// The most invocations of a workgroup.
    invocations: u32,
    /// The most bytes of workgroup memory.
    shared: u32,
    /// "no", or the widths of subgroups it is written for.
    subgroups: String,
    /// The coarsest alignment of a binding in bytes: what its elements are.
    alignment: u32,
    /// "no", "unpacked" where a word may hold two halves, or "matrices".
    f16: String,
}

impl std::fmt::Display for Relies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "// Relies on: up to {} invocations, {} bytes of workgroup memory, subgroups: {}; f16: {}; bindings aligned to {} bytes.",
            self.invocations, self.shared, self.subgroups, self.f16, self.alignment
        )
    }
}

/// The bytes of the elements of the widest array that a kernel binds.
fn alignment(module: &naga::Module) -> u32 {
    let element = |v: &naga::GlobalVariable| match (&v.space, &module.types[v.ty].inner) {
        (naga::AddressSpace::Storage { .. }, naga::TypeInner::Array { stride, .. }) => Some(*stride),
        _ => None,
    };
    module.global_variables.iter().filter_map(|(_, v)| element(v)).max().unwrap_or(4)
}

#[test]
fn kernels_say_what_they_rely_on_and_rely_on_no_more() {
    let shaders: Vec<PathBuf> = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")).collect();
    let mut measured: BTreeMap<String, Relies> = BTreeMap::new();
    kernels(|d, traits| {
        let name = d.shader.name;
        let source = ops::link(&d.shader.source);
        let (module, info) = parse(name, &source, traits.subgroup.is_some());
        let constants = d.constants.iter().map(|(n, x)| (n.to_string(), *x)).collect();
        let (module, _) = naga::back::pipeline_constants::process_overrides(&module, &info, None, &constants).unwrap();
        let invocations: u32 = module.entry_points[0].workgroup_size.iter().product();
        let shared: u32 = (module.global_variables.iter())
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
            .sum();
        // What a setting offers is enough.
        assert!(invocations <= traits.max_invocations, "{name}: {invocations} invocations at {traits:?}");
        assert!(shared <= traits.workgroup_bytes, "{name}: {shared} bytes of workgroup memory at {traits:?}");
        let code: String = source.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        let subgroups = code.contains("subgroup");
        assert!(!subgroups || traits.subgroup.is_some(), "{name} uses subgroups at {traits:?}");
        // A tile's sizes follow the file's name.
        let file = name.split(' ').next().unwrap_or(name);
        let all = measured.entry(file.to_string()).or_default();
        all.invocations = all.invocations.max(invocations);
        all.shared = all.shared.max(shared);
        all.alignment = all.alignment.max(alignment(&module));
        if subgroups {
            let widths: BTreeSet<u32> = all.subgroups.split(", ").filter_map(|w| w.parse().ok()).collect();
            let widths: Vec<String> = widths
                .into_iter()
                .chain(traits.subgroup)
                .collect::<BTreeSet<u32>>()
                .iter()
                .map(u32::to_string)
                .collect();
            all.subgroups = widths.join(", ");
        }
        for (word, how) in [("coop_mat", "matrices"), ("unpack2x16float", "unpacked")] {
            if code.contains(word) {
                all.f16 = how.into();
            }
        }
    });
    let mut wrong = Vec::new();
    for (name, found) in &mut measured {
        if found.subgroups.is_empty() {
            found.subgroups = "no".into();
        }
        if found.f16.is_empty() {
            found.f16 = "no".into();
        }
        let file = shaders.iter().find(|f| f.ends_with(format!("{name}.wgsl"))).unwrap_or_else(|| panic!("{name}"));
        let text = std::fs::read_to_string(file).unwrap();
        if !text.lines().any(|line| line == found.to_string()) {
            wrong.push(format!("{name}.wgsl should say\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_of_shaders_is_valid_alone_and_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &Path| std::fs::read_to_string(file).unwrap();
    let rust: String = files(&root.join("src/ops")).map(|f| read(&f)).collect();
    let shaders: Vec<PathBuf> = files(&root.join("shaders")).collect();
    let all: String = shaders.iter().map(|f| read(f)).collect();
    for file in &shaders {
        let name = file.strip_prefix(root).unwrap().display().to_string();
        let source = ops::link(&read(file));
        let module =
            naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
        Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
        let shared = name.strip_prefix("shaders/").filter(|n| n.starts_with("shared/"));
        let imported = |n: &str| all.lines().any(|l| l.strip_prefix("//#import ") == Some(n));
        // Subgroups' reductions take the place of an import.
        let instead = |n: &str| rust.contains(&format!("const SUBGROUP_REDUCTIONS: &str = \"{n}\""));
        let used = match shared {
            Some(n) => imported(n) || instead(n),
            None => module.entry_points.len() == 1 && rust.contains(&name),
        };
        assert!(used, "no kernel uses {name}");
    }
}

/// The files of a folder and of those in it.
fn files(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut open = vec![dir.to_path_buf()];
    let mut all = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).expect("a folder").map(|e| e.unwrap().path()) {
            if entry.is_dir() { open.push(entry) } else { all.push(entry) }
        }
    }
    all.into_iter()
}
