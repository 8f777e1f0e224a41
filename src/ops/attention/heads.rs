//! What `attention` and its gradient share: extents, where heads lie in memory, and how scores become probabilities.

use crate::ops::engine::prelude::*;
use crate::ops::matmul::multiply::packs_rights;
use std::cell::RefCell;
use std::ops::Range;

/// Queries of one task.
pub const ROWS: usize = 64;
/// The most keys whose scores a task holds at once.
pub const KEYS: usize = 256;

/// Names of the flags that say an operand is stored `(B, S, H, D)`, in the order of [`Layout`].
pub const FLAGS: [&str; 4] = ["seq_q", "seq_k", "seq_v", "seq_y"];

/// The attributes of attention and its gradient.
pub const ATTRS: &[AttrSpec] = &[
    needs("scale", AttrKind::Float),
    may("cap", AttrKind::Float),
    flag("safe"),
    flag(FLAGS[0]),
    flag(FLAGS[1]),
    flag(FLAGS[2]),
    flag(FLAGS[3]),
    flag("bf16"),
];

/// Where the rows of an operand's heads lie: the first element of row s of head h of example b stands at
/// `b * batch + h * head + s * row`, and the row's other elements follow it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub batch: usize,
    pub head: usize,
    pub row: usize,
}

impl Place {
    pub fn at(&self, b: usize, h: usize, s: usize) -> usize {
        b * self.batch + h * self.head + s * self.row
    }

    /// As a device kernel's words.
    pub fn words(&self) -> [u32; 3] {
        [self.batch as u32, self.head as u32, self.row as u32]
    }
}

/// The problem: extents, and the places of q, k, v and y.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    pub batch: usize,
    /// Heads of queries, and how many of them share one head of keys.
    pub heads: usize,
    pub share: usize,
    pub queries: usize,
    pub keys: usize,
    /// Extents of a row of q and k, and of v and y.
    pub width: usize,
    pub value: usize,
    pub q: Place,
    pub k: Place,
    pub v: Place,
    pub y: Place,
}

/// `(B, H, S, D)` of an operand as it is stored, and the place of its rows.
fn stored(ty: &Type, seq: bool) -> Result<([usize; 4], Place), String> {
    let [b, x, y, d] = ty.shape[..] else { return Err(format!("{ty} has not four axes")) };
    match ty.is_float() {
        true => Ok((shape([b, x, y, d], seq), place([b, x, y, d], seq))),
        false => Err(format!("{ty} is not a float")),
    }
}

/// Where rows lie in a tensor of these axes as they are stored.
fn place([_, x, y, d]: [usize; 4], seq: bool) -> Place {
    match seq {
        false => Place { batch: x * y * d, head: y * d, row: d },
        true => Place { batch: x * y * d, head: d, row: y * d },
    }
}

impl Heads {
    /// The problem of these operands, or why they do not fit each other.
    pub fn new(q: &Type, k: &Type, v: &Type, attrs: &Attrs) -> Result<Heads, String> {
        let flag = |i: usize| attrs.flag(FLAGS[i]);
        let ([batch, heads, queries, width], q_at) = stored(q, flag(0))?;
        let (ks, k_at) = stored(k, flag(1))?;
        let (vs, v_at) = stored(v, flag(2))?;
        if ks[0] != batch || ks[3] != width || vs[..3] != ks[..3] {
            return Err(format!("queries, keys and values {q}, {k}, {v} do not fit each other"));
        }
        if ks[1] == 0 || !heads.is_multiple_of(ks[1]) {
            return Err(format!("{heads} heads of queries do not share {} heads of keys evenly", ks[1]));
        }
        let (keys, value) = (ks[2], vs[3]);
        if [batch, heads, queries, keys, width, value].contains(&0) {
            return Err("an extent is zero".into());
        }
        let y_at = place(shape([batch, heads, queries, value], flag(3)), flag(3));
        let share = heads / ks[1];
        Ok(Heads { batch, heads, share, queries, keys, width, value, q: q_at, k: k_at, v: v_at, y: y_at })
    }

    /// The same, of a node that [`Heads::new`] has admitted.
    pub fn of(types: &[Type], attrs: &Attrs) -> Heads {
        Heads::new(&types[0], &types[1], &types[2], attrs).expect("infer has admitted these operands")
    }

    /// Multiplications and additions of products of each query with each key, over so many elements.
    pub fn flops(&self, width: usize) -> f64 {
        2.0 * (self.batch * self.heads * self.queries * self.keys) as f64 * width as f64
    }

    /// How y is stored.
    pub fn y_type(&self, attrs: &Attrs) -> Type {
        Type::f32(shape([self.batch, self.heads, self.queries, self.value], attrs.flag(FLAGS[3])))
    }

    /// One entry for each row of scores: `(B, H, S, words)`.
    pub fn rows_type(&self, words: usize) -> Type {
        Type::f32([self.batch, self.heads, self.queries, words])
    }

    /// Whether a bias broadcasts to the scores.
    pub fn admits(&self, bias: &Type) -> Result<(), String> {
        let scores = [self.batch, self.heads, self.queries, self.keys];
        let fits = bias.rank() == 4 && bias.shape.iter().zip(scores).all(|(&x, n)| x == n || x == 1);
        if fits && bias.is_float() { Ok(()) } else { Err(format!("a bias {bias} does not broadcast to {scores:?}")) }
    }

    /// Strides of a bias over `(B, H, S, T)`.
    pub fn bias_strides(&self, bias: &Type) -> [usize; 4] {
        let strides = bias.shape.broadcast_strides(&[self.batch, self.heads, self.queries, self.keys]);
        [strides[0], strides[1], strides[2], strides[3]]
    }
}

/// The second axis and the third, exchanged where positions come first.
fn shape([b, h, s, d]: [usize; 4], seq: bool) -> [usize; 4] {
    if seq { [b, s, h, d] } else { [b, h, s, d] }
}

/// How scores become the exponents of probabilities: `cap · tanh(scale · s / cap)`, or `scale · s`, plus a bias.
pub struct Rule<'a, T> {
    pub scale: T,
    pub cap: Option<T>,
    bias: Option<(&'a [T], [usize; 4])>,
    /// For each of the bias's examples, heads and blocks of [`ROWS`] queries, the keys that any of them sees.
    seen: Lent,
    blocks: usize,
}

/// A list whose memory its thread keeps for the next one.
#[derive(Default)]
struct Lent(Vec<(usize, usize)>);

thread_local! {
    static KEPT: RefCell<Vec<(usize, usize)>> = const { RefCell::new(Vec::new()) };
}

impl Lent {
    fn new(n: usize, fill: (usize, usize)) -> Lent {
        let mut list = KEPT.take();
        list.clear();
        list.resize(n, fill);
        Lent(list)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.0.capacity() > 0 {
            KEPT.set(std::mem::take(&mut self.0));
        }
    }
}

impl<'a, T: Real> Rule<'a, T> {
    pub fn new(h: &Heads, attrs: &Attrs, bias: Option<(&'a [T], &Type)>) -> Rule<'a, T> {
        let cap = attrs.get_float("cap").map(T::of);
        let mut rule = Rule { scale: T::of(attrs.float("scale")), cap, bias: None, seen: Lent::default(), blocks: 0 };
        let Some((data, ty)) = bias else { return rule };
        let strides = h.bias_strides(ty);
        rule.bias = Some((data, strides));
        if strides[3] == 0 {
            return rule;
        }
        rule.blocks = if strides[2] == 0 { 1 } else { h.queries.div_ceil(ROWS) };
        let rows = if strides[2] == 0 { 1 } else { h.queries };
        let mut seen = Lent::new(data.len() / (rows * h.keys) * rule.blocks, (0, h.keys));
        let (out, blocks) = (Shared::new(&mut seen.0), rule.blocks);
        parallel::ranges(blocks * (data.len() / (rows * h.keys)), 1, |range| {
            for i in range {
                let first = i / blocks * rows + i % blocks * ROWS;
                let last = (first + ROWS).min((i / blocks + 1) * rows);
                let of = |r: usize| visible(&data[r * h.keys..(r + 1) * h.keys]);
                let hull = (first..last).map(of).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
                // SAFETY: one task an entry.
                unsafe { out.put(i, hull.expect("a block has rows")) };
            }
        });
        rule.seen = seen;
        rule
    }

    /// The keys outside of which every probability of a block of queries is zero.
    pub fn seen(&self, h: &Heads, b: usize, head: usize, block: usize) -> Range<usize> {
        let Some((_, s)) = self.bias.filter(|_| !self.seen.0.is_empty()) else { return 0..h.keys };
        let rows = if s[2] == 0 { 1 } else { h.queries };
        let entry = (b * s[0] + head * s[1]) / (rows * h.keys);
        let (from, to) = self.seen.0[entry * self.blocks + if s[2] == 0 { 0 } else { block }];
        from..to
    }

    /// The bias of one row of scores from key `from` on, and whether it has an element for each key.
    #[inline(always)]
    pub fn bias(&self, b: usize, head: usize, query: usize, from: usize, count: usize) -> Option<(&'a [T], bool)> {
        let (data, s) = self.bias?;
        let at = b * s[0] + head * s[1] + query * s[2] + from * s[3];
        Some(if s[3] == 0 { (&data[at..at + 1], false) } else { (&data[at..at + count], true) })
    }
}

/// How far below its row's largest bias a key's must lie for its probability to be zero, whatever the scores: they stay far
/// below this, and exponents underflow within a few hundred.
const HIDDEN: f64 = 1e20;

/// From the first to past the last key that a row of the bias does not hide, in whole parts.
fn visible<T: Real>(bias: &[T]) -> (usize, usize) {
    const PART: usize = 32;
    let margin = T::of(HIDDEN);
    let largest = |x: &[T]| parallel::simd(|| crate::ops::engine::rows::max(x));
    let floor = largest(bias) - margin;
    // NaN counts as seen.
    let hidden = |x: &[T]| x.iter().all(|&v| v < floor);
    let gone = |x: &[T]| largest(x) < floor && hidden(x);
    let from = bias.chunks(PART).take_while(|x| gone(x)).count() * PART;
    let kept = bias.len().div_ceil(PART) - bias.chunks(PART).rev().take_while(|x| gone(x)).count();
    (from.min(bias.len()), (kept * PART).min(bias.len()))
}

/// Some rows of one head side by side: where they are, or copied to `into` where rows of other heads stand between them, since
/// products are slow on rows far apart.
pub fn gathered<'a, T: Copy>(
    data: &'a [T],
    at: usize,
    row: usize,
    [rows, width]: [usize; 2],
    into: &'a mut [T],
) -> &'a [T] {
    if row == width {
        return &data[at..at + rows * width];
    }
    let into = &mut into[..rows * width];
    for (r, to) in into.chunks_exact_mut(width).enumerate() {
        to.copy_from_slice(&data[at + r * row..][..width]);
    }
    into
}

/// [`gathered`] for what stands on the right of a product, and the distance of its rows: products that pack it read it where it is.
pub fn right<'a, T: Real>(
    data: &'a [T],
    at: usize,
    row: usize,
    [rows, width]: [usize; 2],
    into: &'a mut [T],
) -> (&'a [T], usize) {
    match packs_rights::<T>() {
        true => (&data[at..at + (rows - 1) * row + width], row),
        false => (gathered(data, at, row, [rows, width], into), width),
    }
}

/// Scores of one row to exponents; gives the largest, NaN not counting.
#[inline(always)]
pub fn exponents<T: Real>(s: &mut [T], scale: T, cap: Option<T>, bias: Option<(&[T], bool)>) -> T {
    let scale = match cap {
        Some(cap) => {
            let inner = scale / cap;
            for x in s.iter_mut() {
                *x = cap * (*x * inner).tanh_();
            }
            T::one()
        }
        None => scale,
    };
    let larger = |a: T, b: T| if b > a { b } else { a };
    match bias {
        Some((bias, true)) => fold(s, bias, |x, b| x * scale + b, T::neg_infinity(), larger),
        other => {
            let b = other.map_or(T::zero(), |(bias, _)| bias[0]);
            fold(s, &[], |x, _| x * scale + b, T::neg_infinity(), larger)
        }
    }
}

/// Sets each element to `f` of it and its fellow in `by` (zero where that is empty), and folds what they became with `g` in sixteen
/// lanes. Indices rather than iterators: of these, compilers make one loop over vectors.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
pub fn fold<T: Real>(s: &mut [T], by: &[T], f: impl Fn(T, T) -> T, init: T, g: impl Fn(T, T) -> T) -> T {
    let mut lanes = [init; 16];
    let n = s.len() / 16;
    if by.is_empty() {
        for c in 0..n {
            let x = &mut s[c * 16..c * 16 + 16];
            for i in 0..16 {
                x[i] = f(x[i], T::zero());
                lanes[i] = g(lanes[i], x[i]);
            }
        }
    } else {
        for c in 0..n {
            let (x, b) = (&mut s[c * 16..c * 16 + 16], &by[c * 16..c * 16 + 16]);
            for i in 0..16 {
                x[i] = f(x[i], b[i]);
                lanes[i] = g(lanes[i], x[i]);
            }
        }
    }
    let mut total = lanes.iter().fold(init, |t, &l| g(t, l));
    for i in n * 16..s.len() {
        s[i] = f(s[i], by.get(i).copied().unwrap_or(T::zero()));
        total = g(total, s[i]);
    }
    total
}
