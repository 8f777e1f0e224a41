//! The key of a compiled program: input shapes, and input values that must be known at compile time.

use crate::ir::{DType, Tensor, Type};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

/// The shape of every graph input that is not empty, and the elements of those that must be known while compiling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shapes {
    shapes: BTreeMap<String, Vec<usize>>,
    known: BTreeMap<String, Known>,
}

/// A tensor that can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    dtype: DType,
    shape: Vec<usize>,
    words: Vec<u32>,
}

impl Shapes {
    /// The same shapes, with more inputs known.
    pub fn with_known<'a>(mut self, known: impl IntoIterator<Item = &'a (String, Tensor)>) -> Shapes {
        self.known.extend(known.into_iter().map(|(name, t)| {
            (name.clone(), Known { dtype: t.dtype(), shape: t.shape().to_vec(), words: t.words().to_vec() })
        }));
        self
    }

    /// The inputs whose elements are known.
    pub fn known(&self) -> BTreeMap<String, Tensor> {
        let tensor = |k: &Known| Tensor::from_words(&Type::new(k.dtype, k.shape.clone()), k.words.clone());
        self.known.iter().map(|(name, k)| (name.clone(), tensor(k))).collect()
    }
}

impl FromIterator<(String, Vec<usize>)> for Shapes {
    fn from_iter<T: IntoIterator<Item = (String, Vec<usize>)>>(shapes: T) -> Shapes {
        Shapes { shapes: shapes.into_iter().collect(), known: BTreeMap::new() }
    }
}

impl Deref for Shapes {
    type Target = BTreeMap<String, Vec<usize>>;
    fn deref(&self) -> &Self::Target {
        &self.shapes
    }
}

impl DerefMut for Shapes {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.shapes
    }
}
