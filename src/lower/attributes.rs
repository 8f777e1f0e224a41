//! Ensures that no attribute or input is silently ignored: one that a lowering did not read must be at its default or have no effect,
//! otherwise the node is refused.

use crate::onnx::Node;
use serde_json::Value;
use std::sync::LazyLock;

/// For each operator with a lowering, its attributes with their defaults over all versions. From the schemas of the packages onnx
/// and onnxruntime; `fixtures/operators/attributes.py` writes it.
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
    ("ConvInteger", "kernel_shape", "the weight has it"),
    ("ConvTranspose", "kernel_shape", "the weight has it"),
    ("DeformConv", "kernel_shape", "the weight has it"),
    ("GRU", "output_sequence", "of operator set 6 and before; outputs that nothing names are not computed"),
    ("LSTM", "output_sequence", "of operator set 6 and before; outputs that nothing names are not computed"),
    ("QLinearConv", "kernel_shape", "the weight has it"),
    ("QuantizeLinear", "precision", "of the division, which is in f32 here"),
    ("QuantizeLinear", "saturate", "of 8-bit floats alone"),
    ("RNN", "output_sequence", "of operator set 6 and before; outputs that nothing names are not computed"),
    ("Resize", "cubic_coeff_a", "of cubic interpolation alone"),
    ("RotaryEmbedding", "rotary_embedding_dim", "the caches' width says it"),
    ("Split", "num_outputs", "the node's outputs are counted"),
    ("ai.onnx.preview:FlexAttention", "softmax_precision", "the precision of intermediate results, which is f32 here"),
    ("com.microsoft:Attention", "past_present_share_buffer", "of a past, which is refused"),
    ("com.microsoft:Attention", "rotary_embedding_dim", "of rotary angles, which are refused"),
    ("com.microsoft:EmbedLayerNormalization", "mask_index_type", "for the inference of types alone"),
    ("com.microsoft:FusedConv", "kernel_shape", "the weight has it"),
    ("com.microsoft:GroupQueryAttention", "k_norm_epsilon", "of a norm whose weights are refused"),
    ("com.microsoft:GroupQueryAttention", "kv_cache_bit_width", "of a quantised cache, whose type is refused"),
    ("com.microsoft:GroupQueryAttention", "q_norm_epsilon", "of a norm whose weights are refused"),
    ("com.microsoft:GroupQueryAttention", "qk_norm_epsilon", "of a norm whose weights are refused"),
    ("com.microsoft:MatMulNBits", "accuracy_level", "the least precision that may be used; it is f32 here"),
    ("com.microsoft:RotaryEmbedding", "rotary_embedding_dim", "the caches' width says it"),
];

/// Whether an attribute of an operator may stay unread.
pub fn harmless(operator: &str, attribute: &str) -> bool {
    let fits = |pattern: &str, name: &str| pattern == "*" || pattern == name;
    HARMLESS.iter().any(|(o, a, _)| fits(o, operator) && fits(a, attribute))
}

/// Inputs that a lowering need not read, by operator, and why.
const HARMLESS_INPUTS: &[(&str, usize, &str)] = &[
    ("Dropout", 1, "nothing is dropped outside of training"),
    ("Dropout", 2, "whether the program is trained decides"),
    ("Resize", 1, "the region of one coordinate mode alone"),
    ("com.microsoft:GroupQueryAttention", 6, "the keys have that extent"),
];

/// An input that a node has and the lowering has not read. `read` has a bit for each that it has.
pub fn passed_over_input(node: &Node, read: u64, given: impl Fn(usize) -> bool) -> Option<String> {
    let operator = node.operator();
    let harmless = |i: usize| HARMLESS_INPUTS.iter().any(|(o, n, _)| *o == operator && *n == i);
    let unread = (0..node.inputs().len().min(64)).find(|&i| given(i) && read >> i & 1 == 0 && !harmless(i))?;
    Some(node.inputs()[unread].clone())
}

/// Names and defaults of an operator's attributes; `None` where the table has none.
pub fn schema(operator: &str) -> Option<&'static serde_json::Map<String, Value>> {
    SCHEMAS.get(operator)?.as_object()
}

/// An attribute that a node sets to something other than its default, and that the lowering has not read.
pub fn passed_over(node: &Node) -> Option<String> {
    let operator = node.operator();
    let known = schema(&operator)?;
    let unread = node.unread().find(|name| {
        known.get(*name).is_some_and(|defaults| {
            !harmless(&operator, name)
                && !defaults.as_array().is_some_and(|d| d.iter().any(|d| node.attribute_is(name, d)))
        })
    })?;
    Some(unread.to_string())
}
