//! Rewrites a shader once its bindings are known: operands in a buffer that the kernel also writes are declared writable, because a
//! dispatch may not use one buffer in two ways.

/// How a binding is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Uniform,
    Read,
    ReadWrite,
}

/// The source with binding `i` declared as `access[i]` says.
pub fn readable(source: &str, access: &[Access]) -> String {
    let mut out = source.to_string();
    for (i, _) in access.iter().enumerate().filter(|(_, a)| **a == Access::ReadWrite) {
        let declared = format!("@binding({i}) var<storage, read> ");
        out = out.replace(&declared, &format!("@binding({i}) var<storage, read_write> "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Access, readable};

    #[test]
    fn only_the_named_bindings_become_writable() {
        let source = "@group(0) @binding(1) var<storage, read> a: array<f32>;\n\
                      @group(0) @binding(2) var<storage, read> b: array<f32>;\n\
                      @group(0) @binding(3) var<storage, read_write> c: array<f32>;\n";
        let got = readable(source, &[Access::Uniform, Access::Read, Access::ReadWrite, Access::ReadWrite]);
        assert_eq!(got, source.replace("binding(2) var<storage, read>", "binding(2) var<storage, read_write>"));
    }
}
