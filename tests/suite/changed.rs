//! The host as a device, with something about it changed.

use reslora_compile::internals::device::{Cpu, Device, DeviceError, Fetched, PlanId, Run, Ticket, Timing};
use reslora_compile::internals::ir::FloatType;
use reslora_compile::internals::plan::{Limits, Plan};

/// What is changed.
pub trait Change {
    /// Changes what comes back.
    fn fetched(&self, _all: &mut [Fetched]) {}

    /// Refuses plans.
    fn loads(&self, _plan: &Plan) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// The host, with a change.
pub struct Changed<C>(pub Cpu, pub C);

impl<C: Change> Device for Changed<C> {
    fn name(&self) -> String {
        "changed host".into()
    }
    fn fast_products(&self) -> FloatType {
        self.0.fast_products()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn reserve(&mut self, state: &str, words: usize) -> Result<(), DeviceError> {
        self.0.reserve(state, words)
    }
    fn write(&mut self, state: &str, offset: usize, words: &[u32]) -> Result<(), DeviceError> {
        self.0.write(state, offset, words)
    }
    fn read(&mut self, state: &str) -> Result<Vec<u32>, DeviceError> {
        self.0.read(state)
    }
    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        self.1.loads(&plan)?;
        self.0.load(plan)
    }
    fn submit(&mut self, runs: Vec<Run>) -> Result<Ticket, DeviceError> {
        self.0.submit(runs)
    }
    fn collect(&mut self, wait: bool) -> Result<Vec<Fetched>, DeviceError> {
        let mut all = self.0.collect(wait)?;
        self.1.fetched(&mut all);
        Ok(all)
    }
    fn profile(&mut self, run: &Run) -> Result<Vec<Timing>, DeviceError> {
        self.0.profile(run)
    }
    fn plan(&self, id: PlanId) -> &Plan {
        self.0.plan(id)
    }
    fn memory(&self) -> usize {
        self.0.memory()
    }
}
