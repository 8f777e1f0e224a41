//! Tensors on the host.

use super::{DType, Shape, Type};
use ndarray::ArrayD;

/// A host tensor in row-major order. `Bool` holds 0 and 1 only.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    F32(ArrayD<f32>),
    I32(ArrayD<i32>),
    Bool(ArrayD<u32>),
}

fn array<T>(shape: &Shape, data: Vec<T>) -> ArrayD<T> {
    ArrayD::from_shape_vec(shape.0.clone(), data).expect("as many elements as the shape holds")
}

/// The elements of a row-major array.
fn slice<T>(a: &ArrayD<T>) -> &[T] {
    a.as_slice().expect("host tensors are row-major")
}

impl Tensor {
    /// A float tensor. Panics if `data` does not fill `shape`.
    pub fn f32(shape: impl Into<Shape>, data: Vec<f32>) -> Tensor {
        Tensor::F32(array(&shape.into(), data))
    }

    /// An integer tensor. Panics if `data` does not fill `shape`.
    pub fn i32(shape: impl Into<Shape>, data: Vec<i32>) -> Tensor {
        Tensor::I32(array(&shape.into(), data))
    }

    /// A boolean tensor. Panics if `data` does not fill `shape`.
    pub fn bool(shape: impl Into<Shape>, data: Vec<u32>) -> Tensor {
        Tensor::Bool(array(&shape.into(), data))
    }

    pub fn scalar(x: f32) -> Tensor {
        Tensor::f32([], vec![x])
    }

    pub fn zeros(ty: &Type) -> Tensor {
        let n = ty.elements();
        match ty.dtype {
            DType::F32 => Tensor::f32(ty.shape.clone(), vec![0.0; n]),
            DType::I32 => Tensor::i32(ty.shape.clone(), vec![0; n]),
            DType::Bool => Tensor::bool(ty.shape.clone(), vec![0; n]),
        }
    }

    /// A tensor of the same type, all of whose elements are one number.
    pub fn filled(&self, value: f64) -> Tensor {
        let (shape, n) = (Shape(self.shape().to_vec()), self.shape().iter().product());
        match self.dtype() {
            DType::F32 => Tensor::f32(shape, vec![value as f32; n]),
            DType::I32 => Tensor::i32(shape, vec![value as i32; n]),
            DType::Bool => Tensor::bool(shape, vec![u32::from(value != 0.0); n]),
        }
    }

    pub fn dtype(&self) -> DType {
        match self {
            Tensor::F32(_) => DType::F32,
            Tensor::I32(_) => DType::I32,
            Tensor::Bool(_) => DType::Bool,
        }
    }

    pub fn shape(&self) -> &[usize] {
        match self {
            Tensor::F32(a) => a.shape(),
            Tensor::I32(a) => a.shape(),
            Tensor::Bool(a) => a.shape(),
        }
    }

    pub fn ty(&self) -> Type {
        Type::new(self.dtype(), self.shape())
    }

    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// The floats, or `None` if this is not a float tensor.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match self {
            Tensor::F32(a) => Some(slice(a)),
            _ => None,
        }
    }

    /// The integers (a boolean reads as 0 or 1), or `None` if this is a float tensor.
    pub fn as_i32(&self) -> Option<&[i32]> {
        match self {
            Tensor::F32(_) => None,
            Tensor::I32(a) => Some(slice(a)),
            Tensor::Bool(a) => Some(bytemuck::cast_slice(slice(a))),
        }
    }

    /// The elements as four-byte words, as a device stores them.
    pub fn words(&self) -> &[u32] {
        match self {
            Tensor::F32(a) => bytemuck::cast_slice(slice(a)),
            Tensor::I32(a) => bytemuck::cast_slice(slice(a)),
            Tensor::Bool(a) => slice(a),
        }
    }

    /// A tensor from four-byte words as a device stores them.
    pub fn from_words(ty: &Type, words: Vec<u32>) -> Tensor {
        match ty.dtype {
            DType::F32 => Tensor::f32(ty.shape.clone(), bytemuck::cast_vec(words)),
            DType::I32 => Tensor::i32(ty.shape.clone(), bytemuck::cast_vec(words)),
            DType::Bool => Tensor::bool(ty.shape.clone(), words),
        }
    }
}
