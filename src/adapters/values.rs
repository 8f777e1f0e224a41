//! The trained tensors of one target, in f64, as merges read them.

use super::Target;
use ndarray::{Array1, Array2, ArrayD, Ix1, Ix2};
use std::collections::BTreeMap;

/// The tensors of an adapter, by name.
pub(crate) type Tensors = BTreeMap<String, ArrayD<f32>>;

/// The two linear maps of a term: `term = s · last carry x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// `[k, in]`
    pub carry: Array2<f64>,
    /// `[out, k]`
    pub last: Array2<f64>,
    /// `s`
    pub scale: f64,
}

/// Tensors of a target by suffix.
pub struct Values<'a> {
    /// The adapter's tensors by name.
    pub tensors: &'a BTreeMap<String, ArrayD<f32>>,
    /// Whose tensors are read.
    pub target: &'a Target,
}

impl Values<'_> {
    /// A tensor of the target's, else one that all targets share.
    ///
    /// # Panics
    /// If the adapter holds no such tensor: it was checked to fit.
    pub fn tensor(&self, suffix: &str) -> ArrayD<f64> {
        let own = self.tensors.get(&self.target.tensor(suffix));
        let t =
            own.or_else(|| self.tensors.get(suffix)).unwrap_or_else(|| panic!("no '{suffix}' in a checked adapter"));
        t.mapv(f64::from)
    }

    /// A matrix; the kernel of a pointwise convolution has axes of one element behind its two.
    pub fn matrix(&self, suffix: &str) -> Array2<f64> {
        self.tensor(suffix).into_dimensionality::<Ix2>().expect("its shape was checked")
    }

    /// A tensor of one axis.
    pub fn vector(&self, suffix: &str) -> Array1<f64> {
        self.tensor(suffix).into_dimensionality::<Ix1>().expect("its shape was checked")
    }
}
