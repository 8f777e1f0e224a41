//! Module paths: the name a person would use for a node, taken from the module it came from, such as
//! `model.layers.0.self_attn.q_proj`.

use super::Node;

/// The module path of a node that reads the weight `weight` (if it reads one). In order: the last module scope in the
/// metadata of PyTorch's current exporter; the node's name as a path without its last component; the weight's name
/// without `.weight`; the node's name.
///
/// PyTorch's older exporter leaves modules out whose `forward` was not called (`m.decoder` for `m.model.decoder`) and
/// numbers the second and later calls of one (`query_1`): where the weight's name is the same path in full, it counts.
pub fn module_path(node: &Node, weight: Option<&str>) -> String {
    let stem = weight.filter(|w| !w.is_empty()).map(|w| w.strip_suffix(".weight").unwrap_or(w));
    let named = || {
        let p = path(node.name())?;
        Some(stem.filter(|s| is_short_for(&p, s)).map_or(p, String::from))
    };
    scope(node).or_else(named).or(stem.map(String::from)).unwrap_or_else(|| node.label())
}

/// Whether `short`, without the numbers of later calls, is `full` with some components left out, but not the last.
fn is_short_for(short: &str, full: &str) -> bool {
    let unnumbered = |c: &str| match c.rsplit_once('_') {
        Some((head, n)) if !head.is_empty() && !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
            head.to_string()
        }
        _ => c.to_string(),
    };
    let mut rest = full.split('.').peekable();
    let mut last = "";
    let all = short.split('.').all(|c| {
        rest.by_ref().any(|f| {
            last = f;
            f == c || f == unnumbered(c)
        })
    });
    all && full.rsplit('.').next() == Some(last) && rest.peek().is_none()
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
    let scopes: Vec<&str> = scopes.split('/').collect();
    // A Sequential that is called stands before its children, which bear its name already: `layer/layer.0`.
    let repeats = |(i, c): (usize, &&str)| {
        scopes.get(i + 1).is_some_and(|n| n.strip_prefix(*c).is_some_and(|r| r.starts_with('.')))
    };
    let kept: Vec<&str> = scopes.iter().enumerate().filter(|p| !repeats(*p)).map(|(_, c)| *c).collect();
    Some(kept.join(".")).filter(|p| !p.is_empty())
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
        check("/m/decoder/fc/MatMul", None, Some("m.model.decoder.fc.weight"), "m.model.decoder.fc");
        check("/m/layer.0/query_1/MatMul", None, Some("m.layer.0.query.weight"), "m.layer.0.query");
        check("/m/lm_head/MatMul", None, Some("m.model.embed.weight"), "m.lm_head");
        check("/m/layer/layer.0/fc/MatMul", None, None, "m.layer.0.fc");
        check("/m/conv_1/MatMul", None, Some("m.conv_1.weight"), "m.conv_1");
        check("MatMul_7", None, None, "MatMul_7");
        check("", None, None, "MatMul(y)");
    }
}
