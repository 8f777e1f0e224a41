//! Matrix products on a device: every kernel, every way of storing, races between kernels, and products of halves. A software
//! adapter that races is given the kernels for hardware, so these are tested without a GPU too.

use crate::gpu::available;
use crate::oracle::{self, Case};
use half::f16;
use reslora_compile::internals::device::{Cpu, Device, Gpu, GpuOptions, Run};
use reslora_compile::internals::ir::{Attr, Attrs, Builder, FloatType, Sink, Tensor, Type, Weight};
use reslora_compile::internals::ops::{self, Cooperative, Dispatch, Fill, GpuCall, GpuTraits, RULES, draw};
use reslora_compile::internals::plan::{self, Layout};
use std::collections::BTreeSet;
use std::path::Path;

/// A product to try.
#[derive(Clone, Copy, Debug)]
struct Problem {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    trans_a: bool,
    trans_b: bool,
    halves: bool,
}

/// Edges in each extent, both ways of storing each operand, few rows, few columns, and k long enough to be cut into parts.
fn problems() -> Vec<Problem> {
    let mut all = Vec::new();
    for (batch, m, n, k) in
        [(1, 130, 132, 68), (3, 37, 41, 19), (1, 200, 8, 96), (2, 8, 160, 40), (1, 24, 40, 1060), (1, 7, 9, 1030)]
    {
        for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
            all.push(Problem { batch, m, n, k, trans_a, trans_b, halves: false });
        }
        all.push(Problem { batch, m, n, k, trans_a: false, trans_b: true, halves: true });
    }
    all
}

impl Problem {
    fn attrs(&self) -> Attrs {
        let flags = [("trans_a", self.trans_a), ("trans_b", self.trans_b), ("halves", self.halves)];
        flags.into_iter().fold(Attrs::new(), |attrs, (name, x)| attrs.with(name, Attr::Bool(x)))
    }

    fn operands(&self) -> [Tensor; 2] {
        let shape = |rows: usize, cols: usize, turned: bool| {
            let (rows, cols) = if turned { (cols, rows) } else { (rows, cols) };
            if self.batch == 1 { vec![rows, cols] } else { vec![self.batch, rows, cols] }
        };
        let a = Type::f32(shape(self.m, self.k, self.trans_a));
        let x = Type::f32(shape(self.k, self.n, self.trans_b));
        [draw(&a, Fill::Normal, 1), draw(&x, Fill::Normal, 2)]
    }

    /// Its result on a device, the second operand being a frozen weight.
    fn on(&self, device: &mut dyn Device) -> Tensor {
        let [a, x] = self.operands();
        let mut b = Builder::new(RULES);
        let left = b.input("a", a.ty());
        let (ty, name) = (x.ty(), format!("{self:?}"));
        let right = b.weight(Weight::new(name, 0, move || x.clone()), ty);
        let y = b.emit("matmul", &[left, right], self.attrs()).expect("a product");
        b.output("y", y, Sink::Fetch);
        let id =
            device.load(plan::plan(b.graph, &Layout::default(), device.limits()).expect("a plan")).expect("loaded");
        device.submit(vec![Run { plan: id, inputs: vec![("a".into(), a)] }]).expect("submitted");
        device.collect(true).expect("collected").remove(0).runs.remove(0).remove(0).1
    }

    fn call_with<T>(&self, traits: GpuTraits, packed: &[bool], f: impl FnOnce(&GpuCall) -> T) -> T {
        let (attrs, [a, x]) = (self.attrs(), self.operands().map(|t| t.ty()));
        let out = (ops::find("matmul").unwrap().infer)(&[&a, &x], &attrs).unwrap();
        f(&GpuCall { attrs: &attrs, types_in: &[a, x], types_out: &out, traits, packed, variant: None })
    }
}

/// Kernels sum in orders of their own; relative to the largest element.
pub fn close(have: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(have.ty(), want.ty(), "{what}");
    let (have, want) = (have.as_f32().unwrap(), want.as_f32().unwrap());
    let size = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        assert!((h - w).abs() <= 2e-5 * size, "{what}: element {i} is {h}, not {w}");
    }
}

pub fn hardware_traits() -> GpuTraits {
    GpuTraits { max_invocations: 1024, workgroup_bytes: 32768, ..GpuTraits::least(false) }
}

pub fn open(kernel: Option<&str>, half_weights: bool) -> Gpu {
    let kernel = kernel.map(String::from);
    Gpu::open_with(None, &GpuOptions { tune: Some(kernel.is_some()), kernel, half_weights, ..GpuOptions::default() })
        .expect("an adapter")
}

#[test]
fn every_kernel_computes_what_the_host_computes_and_all_the_same_bits() {
    if !available() {
        return;
    }
    let problems = problems();
    let want: Vec<Tensor> = problems.iter().map(|p| p.on(&mut Cpu::new(None))).collect();
    let offered = |p: &Problem| p.call_with(hardware_traits(), &[], |call| ops::candidates("matmul", call));
    let kernels: BTreeSet<&str> = problems.iter().flat_map(offered).collect();
    assert!(kernels.len() > 8, "only {kernels:?}");
    let mut first: Vec<Option<Tensor>> = vec![None; problems.len()];
    for kernel in kernels {
        let mut gpu = open(Some(kernel), false);
        for ((p, want), first) in problems.iter().zip(&want).zip(&mut first) {
            if offered(p).contains(&kernel) {
                let have = p.on(&mut gpu);
                close(&have, want, &format!("{kernel} on {p:?}"));
                assert_eq!(
                    first.get_or_insert(have.clone()),
                    &have,
                    "{kernel} on {p:?} differs from the kernel before"
                );
            }
        }
    }
    assert!(first.iter().all(Option::is_some));
    // And the kernels of a software adapter.
    let mut gpu = open(None, false);
    for (p, want) in problems.iter().zip(&want) {
        close(&p.on(&mut gpu), want, &format!("without tiles, {p:?}"));
    }
}

#[test]
fn weights_as_halves_multiply_like_weights_rounded_to_halves() {
    let problems_on = |mut cpu: Cpu| {
        problems().iter().for_each(|p| drop(p.on(&mut cpu)));
        cpu.memory()
    };
    let bytes: usize = problems().iter().map(|p| 4 * p.operands()[1].elements()).sum();
    let saved = problems_on(Cpu::new(None)) - problems_on(Cpu::new(None).with_weights(FloatType::F16));
    // Where products pack their right operands.
    let want = if ops::packs_rights::<f32>() { bytes / 2 } else { 0 };
    assert!(saved.abs_diff(want) < bytes / 100, "{saved} of {bytes} bytes are saved on the cpu");
    if !available() {
        return;
    }
    for kernel in [None, Some("matmul 32x32x32.4x4")] {
        let mut gpu = open(kernel, true);
        for p in problems() {
            let want = p.on(&mut Cpu::new(None).with_weights(FloatType::F16));
            close(&p.on(&mut gpu), &want, &format!("{kernel:?}, {p:?}"));
        }
        let mut whole = open(kernel, false);
        problems().iter().for_each(|p| drop(p.on(&mut whole)));
        let saved = whole.memory() - gpu.memory();
        assert!(saved.abs_diff(bytes / 2) < bytes / 100, "{saved} of {bytes} bytes are saved");
    }
}

#[test]
fn halves_are_rounded_alike_everywhere() {
    if !available() {
        return;
    }
    // Ties, subnormal halves, what overflows, infinities: each times one, so that nothing is added up.
    let mut values: Vec<f32> = (0..1 << 14).map(|i| f32::from_bits(0x3300_0000 + i * 0x1_4b51)).collect();
    values.extend([65504.0, 65519.9, 65520.0, 1e9, f32::INFINITY, 5.960_464_5e-8, 2.980_232_2e-8, 2.98e-8, 0.0, 1e-20]);
    values.extend((0..2048).map(|i| f32::from_bits(0x3f80_0000 | i << 12)));
    let negative: Vec<f32> = values.iter().map(|x| -x).collect();
    values.extend(negative);
    let n = values.len();
    let want: Vec<f32> = values.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    for kernel in [None, Some("matmul 128x16x16.4x4")] {
        let mut gpu = open(kernel, false);
        let devices: [&mut dyn Device; 2] = [&mut gpu, &mut Cpu::new(None)];
        for device in devices {
            let mut b = Builder::new(RULES);
            let (a, x) = (b.input("a", Type::f32([n, 1])), b.input("x", Type::f32([1, 1])));
            let y = b.emit("matmul", &[a, x], Attrs::new().with("halves", Attr::Bool(true))).unwrap();
            b.output("y", y, Sink::Fetch);
            let id = device.load(plan::plan(b.graph, &Layout::default(), device.limits()).unwrap()).unwrap();
            let a = Tensor::f32([n, 1], values.clone());
            let inputs = vec![("a".into(), a), ("x".into(), Tensor::f32([1, 1], vec![1.0]))];
            device.submit(vec![Run { plan: id, inputs }]).unwrap();
            let got = device.collect(true).unwrap().remove(0).runs.remove(0).remove(0).1;
            for ((x, got), want) in values.iter().zip(got.as_f32().unwrap()).zip(&want) {
                assert!(
                    got == want || got.is_nan() && want.is_nan(),
                    "{}: {x:e} became {got:e}, not {want:e}",
                    device.name()
                );
            }
        }
    }
}

#[test]
fn races_have_winners_that_are_remembered_and_change_nothing() {
    if !available() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options = GpuOptions { tune: Some(true), cache: Some(dir.path().join("cache")), ..GpuOptions::default() };
    let tuned = || Gpu::open_with(None, &options).expect("an adapter");
    let p = Problem { batch: 1, m: 96, n: 64, k: 512, trans_a: false, trans_b: true, halves: false };
    let mut gpu = tuned();
    assert!(gpu.winners().is_empty());
    let result = p.on(&mut gpu);
    let winners = gpu.winners().clone();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let offered = p.call_with(hardware_traits(), &[], |call| ops::candidates("matmul", call));
    assert!(offered.contains(&winners.values().next().unwrap().as_str()), "{winners:?} of {offered:?}");
    // Another kernel gives the same bits.
    assert_eq!(p.on(&mut open(Some("matmul 32x32x32.4x4"), false)), result);

    // A later run knows the winner before it has raced.
    assert_eq!(*tuned().winners(), winners);
    // A damaged file is raced for again, and written anew.
    let files = || std::fs::read_dir(dir.path().join("cache")).unwrap().map(|f| f.unwrap().path());
    files().for_each(|f| std::fs::write(f, b"damaged").unwrap());
    let mut gpu = tuned();
    assert!(gpu.winners().is_empty());
    assert_eq!(p.on(&mut gpu), result);
    assert_eq!(tuned().winners().len(), 1);
    // A folder that cannot be made is none.
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let options = GpuOptions { cache: Some(dir.path().join("file/cache")), ..options.clone() };
    assert_eq!(p.on(&mut Gpu::open_with(None, &options).expect("an adapter")), result);
}

/// The first kernel of a call is the one it names, multiplies in cooperative matrices, and is valid.
pub fn assert_valid_cooperative(op: &str, call: &GpuCall) {
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    let name = call.variant.expect("a named kernel");
    let Dispatch { shader, constants, .. } = ops::dispatches(op, call).remove(0);
    assert_eq!(shader.name, name);
    assert!(shader.source.contains("coopMultiplyAdd"));
    let source = &ops::link(&shader.source);
    let module =
        naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(source)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(source)));
    let constants = constants.iter().map(|(n, x)| (n.to_string(), *x)).collect();
    let (module, info) = naga::back::pipeline_constants::process_overrides(&module, &info, None, &constants)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let options = naga::back::spv::Options { lang_version: (1, 6), ..Default::default() };
    naga::back::spv::write_vec(&module, &info, &options, None).expect("SPIR-V");
}

/// No adapter of ours has cooperative matrices: their kernel is validated, and translated as Vulkan takes it.
#[test]
fn kernels_in_cooperative_matrices_are_valid() {
    let mut kernels = BTreeSet::new();
    for (size, width, one_width) in [(16, 32, true), (8, 32, true), (16, 64, false)] {
        let cooperative = Some(Cooperative { size, width, one_width });
        let traits = GpuTraits { cooperative, ..hardware_traits() };
        for p in problems().into_iter().map(|p| Problem { halves: true, ..p }) {
            for packed in [[false, false], [false, true]] {
                p.call_with(traits, &packed, |call| {
                    for name in ops::candidates("matmul", call) {
                        assert_valid_cooperative("matmul", &GpuCall { variant: Some(name), ..*call });
                        kernels.insert(name);
                    }
                });
            }
        }
        // Products of f32 are not computed in them.
        let p = Problem { halves: false, ..problems()[0] };
        p.call_with(traits, &[], |call| assert!(!ops::dispatches("matmul", call)[0].shader.source.contains("coop")));
    }
    assert!(kernels.len() > 4, "only {kernels:?}");
}

fn case(name: &str) -> Case {
    Case::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases")).join(name))
}

fn cpu_with_half_weights() -> Box<dyn Device> {
    Box::new(Cpu::new(None).with_weights(FloatType::F16))
}

fn gpu_with_half_weights() -> Box<dyn Device> {
    Box::new(open(None, true))
}

/// Rows of a chunk that do not count have no products: tiles ask before they compute.
#[test]
fn products_of_a_loss_leave_out_tiles_beyond_the_rows_that_count() {
    let primitive = ops::find("linear_cross_entropy").expect("a primitive");
    let mut products = 0;
    for (s, traits) in (primitive.samples)().iter().flat_map(|s| [(s, hardware_traits()), (s, GpuTraits::least(true))])
    {
        let types_in: Vec<Type> = s.inputs.iter().map(|x| x.0.clone()).collect();
        let types_out = (primitive.infer)(&types_in.iter().collect::<Vec<_>>(), &s.attrs).expect("sound");
        let (types_in, types_out) = (&types_in[..], &types_out[..]);
        let call = GpuCall { attrs: &s.attrs, types_in, types_out, traits, packed: &[], variant: None };
        for d in ops::dispatches("linear_cross_entropy", &call) {
            if d.shader.name.starts_with("matmul") {
                products += 1;
                assert!(d.shader.source.contains("if (row0 >= u32(row_counts[params.chunk]))"), "{}", d.shader.name);
            }
        }
    }
    assert!(products > 0);
}

/// Devices agree under weights of halves as they do without. What the rounding changes is a few times a half's precision (2^-11) in
/// each loss: errors of many weights average out, those of one layer grow in the next.
#[test]
fn training_on_weights_of_halves() {
    let mut rounded = 0;
    for name in ["bert-cls.ts.input", "llama-lm.dynamo.block"] {
        let case = case(name);
        let settings = case.settings();
        let (full, _) = oracle::train_case(&case, "init.safetensors", &settings, oracle::cpu);
        let (cpu, _) = oracle::train_case(&case, "init.safetensors", &settings, cpu_with_half_weights);
        let off = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| (x - y).abs() / y.abs()).fold(0.0, f64::max);
        assert!(off(&cpu, &full) < 5e-3, "{name}: {:.1e}", off(&cpu, &full));
        rounded += (cpu != full) as usize;
        if available() {
            let (gpu, _) = oracle::train_case(&case, "init.safetensors", &settings, gpu_with_half_weights);
            assert!(off(&gpu, &cpu) < 1e-4, "{name}: {:.1e}", off(&gpu, &cpu));
        }
    }
    assert_eq!(rounded, 2, "no weight was rounded");
}

/// Operands of every product lose all but eleven bits, so losses agree with those in f32 to about 2^-11 of an activation each,
/// averaged over many. Devices round alike but differ in the order of sums, and single operands that round the other way leave losses
/// a few times 2^-11 apart.
#[test]
fn training_in_mixed_precision() {
    for name in ["bert-cls.ts.input", "llama-lm.dynamo.block"] {
        let case = case(name);
        let settings = case.settings();
        let mixed = reslora_compile::internals::train::Settings { products: FloatType::F16, ..settings.clone() };
        let (full, _) = oracle::train_case(&case, "init.safetensors", &settings, oracle::cpu);
        let (cpu, _) = oracle::train_case(&case, "init.safetensors", &mixed, oracle::cpu);
        let off = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| (x - y).abs() / y.abs()).fold(0.0, f64::max);
        assert!(cpu != full, "{name}: nothing was rounded");
        assert!(off(&cpu, &full) < 5e-3, "{name}: {:.1e}", off(&cpu, &full));
        if available() {
            let (gpu, _) = oracle::train_case(&case, "init.safetensors", &mixed, crate::gpu::gpu);
            assert!(off(&gpu, &cpu) < 2e-3, "{name}: {:.1e}", off(&gpu, &cpu));
            // One pass forward alone.
            assert!(off(&gpu[..1], &cpu[..1]) < 2e-4, "{name}: {:.1e}", off(&gpu[..1], &cpu[..1]));
        }
    }
}
