//! Steps on the cpu device allocate what they give back, and nothing else. A binary of its own, since it replaces the allocator.

use reslora_compile::internals::device::{Cpu, Device, DeviceError, Fetched, PlanId, Run, Ticket, Timing};
use reslora_compile::internals::inject::Options;
use reslora_compile::internals::ir::FloatType;
use reslora_compile::internals::onnx;
use reslora_compile::internals::pipeline::{self, BenchRequest};
use reslora_compile::internals::plan::{Limits, Plan};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: by the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: by the caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The cpu device, and for each submission of more than a single product how often it allocated and what that may be at most.
struct Counted {
    cpu: Cpu,
    counts: Vec<(usize, usize)>,
}

impl Device for Counted {
    fn name(&self) -> String {
        self.cpu.name()
    }
    fn fast_products(&self) -> FloatType {
        self.cpu.fast_products()
    }

    fn limits(&self) -> Limits {
        self.cpu.limits()
    }
    fn reserve(&mut self, state: &str, words: usize) -> Result<(), DeviceError> {
        self.cpu.reserve(state, words)
    }
    fn write(&mut self, state: &str, offset: usize, words: &[u32]) -> Result<(), DeviceError> {
        self.cpu.write(state, offset, words)
    }
    fn read(&mut self, state: &str) -> Result<Vec<u32>, DeviceError> {
        self.cpu.read(state)
    }
    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        self.cpu.load(plan)
    }
    fn submit(&mut self, runs: Vec<Run>) -> Result<Ticket, DeviceError> {
        // A list of runs and one in the queue; for each run a list of what is fetched, and now and then a block of the
        // thread pool's queue; for each of those a name, a shape (twice) and the words.
        let fetched: usize = runs.iter().map(|r| self.cpu.plan(r.plan).fetches.len()).sum();
        let most = 2 + 2 * runs.len() + 4 * fetched;
        let large = runs.iter().any(|r| self.cpu.plan(r.plan).steps.len() > 20);
        let before = COUNT.load(Relaxed);
        let ticket = self.cpu.submit(runs);
        if large {
            self.counts.push((COUNT.load(Relaxed) - before, most));
        }
        ticket
    }
    fn collect(&mut self, wait: bool) -> Result<Vec<Fetched>, DeviceError> {
        self.cpu.collect(wait)
    }
    fn profile(&mut self, run: &Run) -> Result<Vec<Timing>, DeviceError> {
        self.cpu.profile(run)
    }
    fn plan(&self, id: PlanId) -> &Plan {
        self.cpu.plan(id)
    }
    fn memory(&self) -> usize {
        self.cpu.memory()
    }
}

#[test]
fn steps_on_the_cpu_allocate_what_they_give_back_alone() {
    if !reslora_compile::internals::ops::packs_rights::<f32>() {
        eprintln!(
            "NO AVX-512: host products are the gemm crate's, which allocates in each: allocations were NOT counted"
        );
        return;
    }
    let cases = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases"));
    let names = ["bert-cls.ts.input", "gpt2-lm.dynamo.none", "llama-lm.genai.input", "vit-cls.ts.block"];
    for (name, half_weights) in names.iter().flat_map(|name| [(name, false), (name, true)]) {
        let base = pipeline::read(&cases.join(name).join("model.onnx")).unwrap();
        let options = Options { rank: 4, alpha: 8.0, dropout: 0.1, ..Options::default() };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.reslora.onnx");
        onnx::write(&pipeline::inject(&base, &options).unwrap().0, &file).unwrap();
        let model = pipeline::read(&file).unwrap();
        let cpu = if half_weights { Cpu::new(None).with_weights(FloatType::F16) } else { Cpu::new(None) };
        let mut device = Counted { cpu, counts: vec![] };
        let request = BenchRequest { batch: 2, seq: 48, steps: 4, ..BenchRequest::new(&model) };
        pipeline::bench(&request, &mut device).unwrap();
        // Threads take the memory that they keep when they first need it, which may be late.
        let best = device.counts.iter().min_by_key(|(count, most)| count.saturating_sub(*most));
        let &(count, most) = best.expect("steps were run");
        assert!(count <= most, "{name}: no step with less than {count} allocations, {most} for what it gives back");
    }
}
