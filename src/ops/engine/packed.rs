//! Frozen right operands of products, packed in tiles once: 16 columns by 32 rows of bf16, neighbours along a column side by side.

/// Lines of a tile: rows of a left operand, columns of a right one.
pub const LINES: usize = 16;
/// Elements of a line, along k.
pub const DEPTH: usize = 32;
/// Elements of a tile.
pub const TILE: usize = LINES * DEPTH;
/// Elements of the two tiles that stand side by side in a panel.
pub const PAIR: usize = 2 * TILE;

/// As many elements as a cache line has, aligned as one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u16; DEPTH]);

/// A matrix `(k, n)` in panels of two tiles' columns; in a panel, the two tiles of 32 steps of k stand behind each other.
pub struct Packed {
    extents: [usize; 2],
    lines: Vec<Line>,
}

impl Packed {
    /// Of tiles in this order.
    pub fn new(extents @ [k, n]: [usize; 2], lines: Vec<Line>) -> Packed {
        assert_eq!(lines.len(), n.div_ceil(2 * LINES) * Packed::panel_lines(k), "all panels are there");
        Packed { extents, lines }
    }

    /// Lines of a panel of `k` steps.
    pub fn panel_lines(k: usize) -> usize {
        k.div_ceil(DEPTH) * PAIR / DEPTH
    }

    /// The tiles of a panel from a step of k on, which is a multiple of a tile's depth.
    pub fn panel(&self, panel: usize, step: usize) -> *const u16 {
        let first = panel * Packed::panel_lines(self.extents[0]) + step / DEPTH * PAIR / DEPTH;
        self.lines[first..].as_ptr().cast()
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }
}

/// One weight as right operands of products: each form by its strides of rows and columns, and its rows.
#[derive(Default)]
pub struct PackedWeight {
    forms: Vec<((usize, usize), Packed)>,
}

impl PackedWeight {
    fn find(&self, strides: (usize, usize), k: usize) -> Option<&Packed> {
        self.forms.iter().find(|(s, p)| *s == strides && p.extents[0] == k).map(|(_, p)| p)
    }

    pub fn has(&self, strides: (usize, usize), k: usize) -> bool {
        self.find(strides, k).is_some()
    }

    pub fn put(&mut self, strides: (usize, usize), packed: Packed) {
        self.forms.push((strides, packed));
    }

    /// The form for these strides and rows.
    pub fn of(&self, strides: (usize, usize), k: usize) -> &Packed {
        self.find(strides, k).expect("packed when the plan was loaded")
    }

    pub fn elements(&self) -> usize {
        self.forms.first().map_or(0, |(_, p)| p.extents[0] * p.extents[1])
    }

    pub fn bytes(&self) -> usize {
        self.forms.iter().map(|(_, p)| p.bytes()).sum()
    }
}
