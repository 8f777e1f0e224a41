//! No attribute is passed over in silence: what a lowering has not read of a standard operator's attributes is at its default,
//! or changes nothing here, or the node is refused.

use crate::onnx::Node;
use serde_json::Value;
use std::sync::LazyLock;

/// For each operator of the standard with a lowering, its attributes with their defaults over all versions. From the onnx
/// package's schemas; `fixtures/operators/attributes.py` writes it.
static SCHEMAS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("attributes.json")).expect("the table is JSON"));

/// Attributes that a lowering need not read, by operator (`*` for all), and why.
pub const HARMLESS: &[(&str, &str, &str)] = &[
    ("*", "broadcast", "of operator set 6 and before; what it allows, later versions do anyway"),
    ("*", "consumed_inputs", "a hint to reuse memory, of operator set 1"),
    ("*", "stash_type", "the precision of intermediate results, which is f32 here"),
    ("Attention", "softmax_precision", "the precision of intermediate results, which is f32 here"),
    ("BatchNormalization", "is_test", "of operator set 6 and before; running statistics are used either way"),
    ("BatchNormalization", "momentum", "running statistics are frozen"),
    ("Cast", "round_mode", "of 8-bit floats alone"),
    ("Cast", "saturate", "of 8-bit floats alone"),
    ("CastLike", "round_mode", "of 8-bit floats alone"),
    ("CastLike", "saturate", "of 8-bit floats alone"),
    ("Constant", "*", "one of the forms of its value is read"),
    ("Conv", "kernel_shape", "the weight has it"),
    ("Dropout", "ratio", "nothing is dropped outside of training"),
    ("Dropout", "seed", "draws have a seed of their own"),
    ("If", "*", "the branch that is taken is read"),
    ("Resize", "cubic_coeff_a", "of cubic interpolation, which is refused"),
    ("Resize", "exclude_outside", "of cubic interpolation, which is refused"),
    ("Resize", "extrapolation_value", "of a coordinate mode that is refused"),
    ("Resize", "nearest_mode", "of nearest interpolation alone"),
    ("RotaryEmbedding", "rotary_embedding_dim", "the caches' width says it"),
    ("Split", "num_outputs", "the node's outputs are counted"),
];

/// Whether an attribute of an operator may stay unread.
pub fn harmless(operator: &str, attribute: &str) -> bool {
    let fits = |pattern: &str, name: &str| pattern == "*" || pattern == name;
    HARMLESS.iter().any(|(o, a, _)| fits(o, operator) && fits(a, attribute))
}

/// Names and defaults of an operator's attributes; `None` where the table has none.
pub fn schema(operator: &str) -> Option<&'static serde_json::Map<String, Value>> {
    SCHEMAS.get(operator)?.as_object()
}

/// An attribute that a node sets to something other than its default, and that the lowering has not read.
pub fn passed_over(node: &Node) -> Option<String> {
    if !node.domain().is_empty() {
        return None;
    }
    let known = schema(node.op_type())?;
    let unread = node.unread().find(|name| {
        known.get(*name).is_some_and(|defaults| {
            !harmless(node.op_type(), name)
                && !defaults.as_array().is_some_and(|d| d.iter().any(|d| node.attribute_is(name, d)))
        })
    })?;
    Some(unread.to_string())
}
