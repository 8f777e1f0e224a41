//! The name a person would use for a node: the path of the module it came from, such as
//! `model.layers.0.self_attn.q_proj`.

use super::Node;

/// The module path of a node that reads the weight `weight` (if it reads one). In order: the last module scope in the
/// metadata of PyTorch's current exporter; the node's name as a path without its last component; the weight's name
/// without `.weight`; the node's name.
pub fn module_path(node: &Node, weight: Option<&str>) -> String {
    scope(node)
        .or_else(|| path(node.name()))
        .or_else(|| weight.filter(|w| !w.is_empty()).map(|w| w.strip_suffix(".weight").unwrap_or(w).to_string()))
        .unwrap_or_else(|| node.label())
}

/// From `pkg.torch.onnx.name_scopes`, a list such as `['', 'm', 'm.fc', 'linear_3']` whose last entry is the operation:
/// the entry before it.
fn scope(node: &Node) -> Option<String> {
    let list = quoted(node.metadata("pkg.torch.onnx.name_scopes")?);
    let module = list.len().checked_sub(2).map(|i| list[i].as_str())?;
    (!module.is_empty()).then(|| module.to_string())
}

/// The strings of a Python list's text.
fn quoted(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut chars = text.chars();
    while let Some(open) = chars.by_ref().find(|c| *c == '\'' || *c == '"') {
        let mut item = String::new();
        while let Some(c) = chars.next() {
            match c {
                '\\' => item.extend(chars.next()),
                c if c == open => break,
                c => item.push(c),
            }
        }
        out.push(item);
    }
    out
}

/// `/m/encoder/layer.0/attention/self/query/MatMul` is `m.encoder.layer.0.attention.self.query`.
fn path(name: &str) -> Option<String> {
    let (scopes, _) = name.strip_prefix('/').unwrap_or(name).rsplit_once('/')?;
    (!scopes.is_empty()).then(|| scopes.replace('/', "."))
}

#[cfg(test)]
mod tests {
    use super::super::NewNode;
    use super::module_path;

    fn node(name: &str, scopes: Option<&str>) -> super::Node {
        let mut n = NewNode::new(name, "MatMul", &["x", "w"], "y");
        n.metadata.extend(scopes.map(|s| ("pkg.torch.onnx.name_scopes".to_string(), s.to_string())));
        n.build()
    }

    #[test]
    fn every_source_of_a_path_in_order() {
        let scopes = Some("['', 'm', 'm.layers.0', 'm.layers.0.q_proj', 'linear']");
        let check = |name, scopes, weight, want: &str| assert_eq!(module_path(&node(name, scopes), weight), want);
        check("/a/b/MatMul", scopes, Some("w.weight"), "m.layers.0.q_proj");
        check("/m/layer.0/query/MatMul", None, Some("onnx::MatMul_1"), "m.layer.0.query");
        check("node_linear", Some("['', 'linear']"), Some("m.fc.weight"), "m.fc");
        check("node_linear", None, Some("val_81"), "val_81");
        check("MatMul_7", None, None, "MatMul_7");
        check("", None, None, "MatMul(y)");
    }
}
