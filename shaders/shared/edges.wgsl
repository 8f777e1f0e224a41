// Tiles at the edges of a matrix.

// How many of the elements from `at` on are before `end`; none if `row` is beyond `rows`.
fn left(row: u32, rows: u32, at: u32, end: u32) -> u32 {
    return select(0u, end - min(at, end), row < rows);
}
