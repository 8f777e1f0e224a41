//! Floating-point types of which products take operands, and of which devices keep frozen weights. Values between operations are f32.

/// A floating-point type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FloatType {
    #[default]
    F32,
    /// IEEE half precision: 11 significant bits, at most 65,504.
    F16,
    /// The upper half of an f32: 8 significant bits, the range of f32.
    Bf16,
}

impl FloatType {
    pub fn name(self) -> &'static str {
        match self {
            FloatType::F32 => "f32",
            FloatType::F16 => "f16",
            FloatType::Bf16 => "bf16",
        }
    }

    /// The type of a name.
    pub fn parse(name: &str) -> Option<FloatType> {
        [FloatType::F32, FloatType::F16, FloatType::Bf16].into_iter().find(|t| t.name() == name)
    }

    /// Whether gradients of products of it vanish or overflow unless the loss is scaled.
    pub fn needs_loss_scale(self) -> bool {
        self == FloatType::F16
    }
}
