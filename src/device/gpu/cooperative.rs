//! Decides whether to use an adapter's cooperative matrices: only if they agree with the ordinary kernel and are faster. The decision
//! is made once, when the first half-precision matmul is loaded, and holds for all of them.

use super::Gpu;
use crate::device::DeviceError;
use crate::ir::{Attr, Attrs, Type};
use crate::ops::{self, Binding, Cooperative, GpuCall, GpuTraits};

/// What the decision is remembered as.
const DECISION: &str = "cooperative matrices";
/// Relative to the largest result: both kernels round operands alike and add up in f32, in other orders.
const TOLERANCE: f32 = 1e-4;
/// How many times as fast they have to be, so that noise does not decide.
const GAIN: f64 = 1.2;

/// The matrices that kernels use, of what an adapter lists: square ones of f16 that add up in f32.
pub(super) fn offered(adapter: &wgpu::Adapter) -> Option<Cooperative> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    if !adapter.features().contains(needed) {
        return None;
    }
    let all = adapter.cooperative_matrix_properties();
    let has = |n: u32| {
        let square = |p: &wgpu::CooperativeMatrixProperties| [p.m_size, p.n_size, p.k_size] == [n; 3];
        all.iter().any(|p| square(p) && p.ab_type == F16 && p.cr_type == F32)
    };
    let size = [16, 8].into_iter().find(|&n| has(n))?;
    let info = adapter.get_info();
    let one_width = info.subgroup_min_size == info.subgroup_max_size;
    Some(Cooperative { size, width: info.subgroup_max_size, one_width })
}

impl Gpu {
    /// Makes the decision if it is not made.
    pub(super) fn settle_cooperative(&mut self) -> Result<(), DeviceError> {
        if std::mem::replace(&mut self.settled, true) || self.traits.cooperative.is_none() {
            return Ok(());
        }
        let used = match self.decided(DECISION) {
            Some(how) => how == "used",
            None => {
                let bytes = self.bytes;
                // A kernel that does not compile is no reason to stop.
                let used = self.agrees().unwrap_or(false) && (!self.races() || self.gains().unwrap_or(false));
                self.bytes = bytes;
                self.decide(DECISION, if used { "used" } else { "not used" });
                used
            }
        };
        if !used {
            self.traits.cooperative = None;
        }
        Ok(())
    }

    /// Whether both kernels agree on small products with edges, stored in every way.
    fn agrees(&mut self) -> Result<bool, DeviceError> {
        let (m, n, k) = (41, 52, 70);
        for (trans_a, trans_b) in [(false, false), (false, true), (true, false)] {
            let a = if trans_a { [k, m] } else { [m, k] };
            let x = if trans_b { [n, k] } else { [k, n] };
            let [with, without] = self.both(trans_a, trans_b, [&a, &x, &[m, n]], |gpu, dispatches, operands| {
                let built = gpu.build(operands.bind(dispatches))?;
                gpu.seconds(&built, 1)?;
                gpu.content(&operands.range(Binding::Output(0)).buffer)
            })?;
            let floats = |words: Vec<u32>| words.into_iter().map(f32::from_bits).collect::<Vec<f32>>();
            let (with, without) = (floats(with), floats(without));
            let largest = without.iter().fold(0.0f32, |l, x| l.max(x.abs()));
            if !with.iter().zip(&without).all(|(a, b)| (a - b).abs() <= TOLERANCE * largest) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether they are faster on a product large enough to fill the device.
    fn gains(&mut self) -> Result<bool, DeviceError> {
        let side = [1024, 1024];
        let [with, without] = self.both(false, false, [&side, &side, &side], Gpu::fastest)?;
        Ok(with * GAIN < without)
    }

    /// Runs a product of halves in cooperative matrices and without.
    fn both<T>(
        &mut self,
        trans_a: bool,
        trans_b: bool,
        [a, x, y]: [&[usize]; 3],
        mut run: impl FnMut(&mut Gpu, Vec<ops::Dispatch>, &super::tuning::Operands) -> Result<T, DeviceError>,
    ) -> Result<[T; 2], DeviceError> {
        let flag = |attrs: Attrs, name: &str, value| attrs.with(name, Attr::Bool(value));
        let attrs = flag(flag(flag(Attrs::new(), "trans_a", trans_a), "trans_b", trans_b), "halves", true);
        let (types_in, types_out) = ([Type::f32(a), Type::f32(x)], [Type::f32(y)]);
        let call = |traits: GpuTraits| GpuCall {
            attrs: &attrs,
            types_in: &types_in,
            types_out: &types_out,
            traits,
            packed: &[],
            variant: None,
        };
        let ways = [self.traits, GpuTraits { cooperative: None, ..self.traits }];
        let all = ways.map(|traits| ops::dispatches("matmul", &call(traits)));
        let operands = self.made_up(&call(self.traits), &all)?;
        let [with, without] = all;
        Ok([run(self, with, &operands)?, run(self, without, &operands)?])
    }
}
