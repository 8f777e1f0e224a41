//! Element types, shapes and tensor types.

use smallvec::SmallVec;
use std::fmt;
use std::ops::Deref;

/// One number for each axis; no allocation up to eight.
pub type Axes = SmallVec<[usize; 8]>;

/// Element type of a value. On a device every element is four bytes wide: `bool` is a `u32` that is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    F32,
    I32,
    Bool,
}

impl DType {
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::Bool => "bool",
        }
    }

    /// The type's name in WGSL.
    pub fn wgsl(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::Bool => "u32",
        }
    }

    pub fn parse(text: &str) -> Option<DType> {
        [DType::F32, DType::I32, DType::Bool].into_iter().find(|d| d.name() == text)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Extents of a tensor, outermost first; empty for a scalar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape(pub Vec<usize>);

/// The most elements that a value may have, whatever a file says: far beyond what any device holds, and far below where numbers of
/// elements overflow.
pub const MAX_ELEMENTS: usize = 1 << 33;

/// Elements of a shape, if they and every part of it are within [`MAX_ELEMENTS`]; an axis without elements hides nothing.
pub fn counted(dims: &[usize]) -> Option<usize> {
    let held = dims.iter().filter(|n| **n != 0).try_fold(1usize, |all, n| all.checked_mul(*n));
    let held = held.filter(|n| *n <= MAX_ELEMENTS)?;
    Some(if dims.contains(&0) { 0 } else { held })
}

impl Shape {
    /// Number of elements (1 for a scalar).
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// Row-major strides, in elements.
    pub fn strides(&self) -> Axes {
        strides(self)
    }

    /// The shape that two operands broadcast to under NumPy's rules, if any.
    pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Shape> {
        let rank = a.len().max(b.len());
        let at = |s: &[usize], d: usize| if d + s.len() < rank { 1 } else { s[d + s.len() - rank] };
        let mut out = Vec::with_capacity(rank);
        for d in 0..rank {
            let (x, y) = (at(a, d), at(b, d));
            match (x, y) {
                _ if x == y => out.push(x),
                (1, _) => out.push(y),
                (_, 1) => out.push(x),
                _ => return None,
            }
        }
        Some(Shape(out))
    }

    /// Strides with which a tensor of this shape is read at every index of `target`, to which it must broadcast:
    /// zero along each axis that it is repeated over.
    pub fn broadcast_strides(&self, target: &[usize]) -> Axes {
        let own = self.strides();
        let lead = target.len() - self.len();
        (0..target.len())
            .map(|d| if d < lead || self.0[d - lead] == 1 && target[d] != 1 { 0 } else { own[d - lead] })
            .collect()
    }
}

/// Row-major strides of a tensor of this shape, in elements.
pub fn strides(shape: &[usize]) -> Axes {
    let mut strides = Axes::from_elem(1, shape.len());
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d];
    }
    strides
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<&[usize]> for Shape {
    fn from(s: &[usize]) -> Shape {
        Shape(s.to_vec())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(s: Vec<usize>) -> Shape {
        Shape(s)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(s: [usize; N]) -> Shape {
        Shape(s.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// Element type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    pub dtype: DType,
    pub shape: Shape,
}

impl Type {
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Type {
        Type { dtype, shape: shape.into() }
    }

    pub fn f32(shape: impl Into<Shape>) -> Type {
        Type::new(DType::F32, shape)
    }

    pub fn i32(shape: impl Into<Shape>) -> Type {
        Type::new(DType::I32, shape)
    }

    pub fn bool(shape: impl Into<Shape>) -> Type {
        Type::new(DType::Bool, shape)
    }

    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    pub fn is_float(&self) -> bool {
        self.dtype == DType::F32
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}
