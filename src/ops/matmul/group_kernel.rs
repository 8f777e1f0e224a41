//! A group as device kernels see it: one product whose right operands, and whose results, stand side by side.

use super::gemm::Group;

impl Group {
    /// What kernels call right operand `i`.
    pub fn right(i: usize) -> &'static str {
        ["x0", "x1", "x2"][i]
    }

    /// A function that reads four neighbouring elements of the right operands side by side, by those that read one of them.
    pub fn load(&self) -> String {
        let count = self.count;
        let (which, at) = match self.trans_b {
            true => ("i / (params.n / COUNT * params.k)".to_string(), "i % (params.n / COUNT * params.k)".to_string()),
            false => {
                let each = "(params.n / COUNT)";
                (format!("i % params.n / {each}"), format!("i / params.n * {each} + i % params.n % {each}"))
            }
        };
        let read = |i: usize| format!("        return load_{}(at, count);\n", Group::right(i));
        let cases: String = (0..count - 1).map(|i| format!("    if (which == {i}u) {{\n{}    }}\n", read(i))).collect();
        format!(
            "const COUNT: u32 = {count}u;\n\nfn load_x(i: u32, count: u32) -> vec4<f32> {{\n    let which = {which};\n    \
             let at = {at};\n{cases}{}}}\n\n",
            read(count - 1)
        )
    }

    /// The body of a kernel's `keep`: its results are called `y`, `y1` and so on. `row` is how many elements (or vec4s) all results have
    /// in a row, `rows` how many rows there are.
    pub fn keep(&self, vectors: bool, [row, rows]: [&str; 2]) -> String {
        let scale = self.scale.map_or(String::new(), |s| format!(" * bitcast<f32>({}u)", (s as f32).to_bits()));
        let mut text = format!(
            "    let value = sum{scale};\n    let each = {row} / {}u;\n    let which = i % {row} / each;\n    \
             let column = i % {row} % each;\n",
            self.count
        );
        for w in 0..self.count {
            let y = if w == 0 { "y".to_string() } else { format!("y{w}") };
            let stores = match (self.trans_y, vectors) {
                (false, _) => format!("        {y}[i / {row} * each + column] = value;\n"),
                (true, false) => format!("        {y}[column * {rows} + i / {row}] = value;\n"),
                (true, true) => (0..4)
                    .map(|o| format!("        {y}[(column * 4u + {o}u) * {rows} + i / {row}] = value[{o}];\n"))
                    .collect(),
            };
            text += &format!("    if (which == {w}u) {{\n{stores}    }}\n");
        }
        text
    }
}
