//! What a block of results is computed from, and where it goes.

/// One part of a block's sum: so many tiles of either side, one behind the other, of two lines' worth each.
#[derive(Clone, Copy)]
pub struct Segment {
    pub tiles: usize,
    pub left: *const u16,
    pub right: *const u16,
}

/// Where a block of results is, and whether what is there is added.
#[derive(Clone, Copy)]
pub struct Sum {
    pub at: *mut f32,
    pub row: usize,
    pub add: bool,
}
