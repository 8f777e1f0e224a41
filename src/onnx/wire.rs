//! The protobuf wire format: just enough to check an untrusted ONNX file and to edit it losslessly.
//!
//! The protobuf crate does not preserve how a message was encoded (field order, explicit defaults, unpacked lists). Unchanged parts of a
//! file are therefore copied as bytes, and small edits are made on bytes. [`check`] walks the whole file before that crate parses
//! anything: its parser recurses without a bound on nested groups (RUSTSEC-2024-0437), which ONNX never uses and this module refuses.

use std::ops::Range;

/// Where and why bytes are no protobuf message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("at byte {at}: field {field} says it has {want} bytes, but only {have} are left")]
    Truncated { at: usize, field: u32, want: u64, have: usize },
    #[error("at byte {at}: a number without an end")]
    Varint { at: usize },
    #[error("at byte {at}: field {field} has wire type {wire}, which ONNX does not use")]
    WireType { at: usize, field: u32, wire: u8 },
    #[error("at byte {at}: messages nested more than {MAX_DEPTH} deep")]
    Depth { at: usize },
}

/// One field of a message: positions are absolute in the bytes given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub number: u32,
    pub wire: u8,
    /// Tag, length and payload.
    pub all: Range<usize>,
    /// Payload alone (for a number, its encoding).
    pub payload: Range<usize>,
}

pub const VARINT: u8 = 0;
pub const FIXED64: u8 = 1;
pub const BYTES: u8 = 2;
pub const FIXED32: u8 = 5;

const MAX_DEPTH: usize = 64;

fn varint(bytes: &[u8], at: usize, end: usize) -> Result<(u64, usize), WireError> {
    let mut value = 0u64;
    for i in 0..10 {
        let Some(&byte) = bytes[..end].get(at + i) else { return Err(WireError::Varint { at }) };
        value |= ((byte & 0x7f) as u64) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok((value, at + i + 1));
        }
    }
    Err(WireError::Varint { at })
}

/// The fields of the message in `range`, in order.
pub fn fields(bytes: &[u8], range: Range<usize>) -> Result<Vec<Field>, WireError> {
    let mut out = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = at;
        let (tag, next) = varint(bytes, at, range.end)?;
        let (number, wire) = ((tag >> 3) as u32, (tag & 7) as u8);
        let left = |from: usize| range.end - from;
        let (payload, end) = match wire {
            VARINT => {
                let (_, end) = varint(bytes, next, range.end)?;
                (next..end, end)
            }
            FIXED64 | FIXED32 => {
                let size = if wire == FIXED64 { 8 } else { 4 };
                if left(next) < size {
                    return Err(WireError::Truncated { at, field: number, want: size as u64, have: left(next) });
                }
                (next..next + size, next + size)
            }
            BYTES => {
                let (len, body) = varint(bytes, next, range.end)?;
                if len > left(body) as u64 {
                    return Err(WireError::Truncated { at, field: number, want: len, have: left(body) });
                }
                (body..body + len as usize, body + len as usize)
            }
            _ => return Err(WireError::WireType { at, field: number, wire }),
        };
        if number == 0 {
            return Err(WireError::WireType { at, field: 0, wire });
        }
        out.push(Field { number, wire, all: start..end, payload });
        at = end;
    }
    Ok(out)
}

/// The messages of onnx.proto, as far as they nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    ValueInfo,
    Type,
    TypeOfTensor,
    TypeOfElement,
    Shape,
    Dimension,
    Function,
    Training,
    Annotation,
    Flat,
}

impl Message {
    /// The message in field `number` of this one; `None` for numbers and strings.
    fn field(self, number: u32) -> Option<Message> {
        use Message::*;
        Some(match (self, number) {
            (Model, 7) => Graph,
            (Model, 8 | 14) => Flat,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Graph, 1) => Node,
            (Graph, 5) => Tensor,
            (Graph, 11..=13) => ValueInfo,
            (Graph, 14) => Annotation,
            (Graph, 15) => SparseTensor,
            (Graph, 16) => Flat,
            (Node, 5) => Attribute,
            (Node, 9) => Flat,
            (Attribute, 5 | 10) => Tensor,
            (Attribute, 6 | 11) => Graph,
            (Attribute, 14 | 15) => Type,
            (Attribute, 22 | 23) => SparseTensor,
            (Tensor, 3 | 13 | 16) => Flat,
            (SparseTensor, 1 | 2) => Tensor,
            (ValueInfo, 2) => Type,
            (ValueInfo, 4) => Flat,
            (Type, 1 | 8) => TypeOfTensor,
            (Type, 4 | 5 | 9) => TypeOfElement,
            (TypeOfTensor, 2) => Shape,
            (TypeOfElement, 1 | 2) => Type,
            (Shape, 1) => Dimension,
            (Function, 7) => Node,
            (Function, 9 | 14) => Flat,
            (Function, 11) => Attribute,
            (Function, 12) => ValueInfo,
            (Training, 1 | 2) => Graph,
            (Training, 3 | 4) => Flat,
            (Annotation, 2) => Flat,
            _ => return None,
        })
    }
}

/// Walks a message and all messages in it: every length must fit, no group may occur, nesting is bounded.
pub fn check(bytes: &[u8], range: Range<usize>, message: Message) -> Result<(), WireError> {
    check_at(bytes, range, message, 0)
}

fn check_at(bytes: &[u8], range: Range<usize>, message: Message, depth: usize) -> Result<(), WireError> {
    if depth > MAX_DEPTH {
        return Err(WireError::Depth { at: range.start });
    }
    for f in fields(bytes, range)? {
        if let (Some(inner), BYTES) = (message.field(f.number), f.wire) {
            // TypeProto.Map's key type is a number in field 1, its siblings' element type a message.
            check_at(bytes, f.payload, inner, depth + 1)?;
        }
    }
    Ok(())
}

/// Appends a number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the tag and length that stand before `len` bytes of field `number`.
pub fn put_header(out: &mut Vec<u8>, number: u32, len: usize) {
    put_varint(out, (number as u64) << 3 | BYTES as u64);
    put_varint(out, len as u64);
}

/// Appends field `number` with these bytes.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_header(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// What to do with a field of a message that is being copied.
pub enum Edit {
    Keep,
    Drop,
    /// Another payload for a field of bytes.
    Payload(Vec<u8>),
}

/// Copies a sound message, editing its fields.
pub fn edit(message: &[u8], mut rule: impl FnMut(&Field, &[u8]) -> Edit) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for f in fields(message, 0..message.len()).expect("checked when the file was read") {
        match rule(&f, &message[f.payload.clone()]) {
            Edit::Keep => out.extend_from_slice(&message[f.all]),
            Edit::Drop => {}
            Edit::Payload(bytes) => put_bytes(&mut out, f.number, &bytes),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_refused_wherever_a_parser_would_meet_them() {
        // A graph that holds a node that holds 100,000 start-group tags of an unknown field.
        let mut node = Vec::new();
        node.extend(std::iter::repeat_n((20 << 3 | 3) as u8, 100_000).flat_map(|b| [b | 0x80, 1]));
        let mut graph = Vec::new();
        put_bytes(&mut graph, 1, &node);
        let mut model = Vec::new();
        put_bytes(&mut model, 7, &graph);
        let error = check(&model, 0..model.len(), Message::Model).unwrap_err();
        assert!(matches!(error, WireError::WireType { wire: 3, .. }), "{error}");
    }

    #[test]
    fn truncation_and_nesting_are_refused() {
        let mut model = Vec::new();
        put_bytes(&mut model, 7, b"\x12\x03abc");
        assert_eq!(check(&model, 0..model.len(), Message::Model), Ok(()));
        let short = check(&model[..5], 0..5, Message::Model).unwrap_err();
        assert!(matches!(short, WireError::Truncated { field: 7, want: 5, have: 3, .. }), "{short}");

        let mut deep = Vec::new();
        for _ in 0..70 {
            let mut attribute = Vec::new();
            put_bytes(&mut attribute, 6, &deep);
            let mut node = Vec::new();
            put_bytes(&mut node, 5, &attribute);
            deep = Vec::new();
            put_bytes(&mut deep, 1, &node);
        }
        assert!(matches!(check(&deep, 0..deep.len(), Message::Graph), Err(WireError::Depth { .. })));
    }
}
