//! Splitting host kernels over cores. Splits depend on sizes only, so results do not depend on timing.

use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

/// Work below this many elements stays on one core.
pub const GRAIN: usize = 16 * 1024;

/// Calls `f` on consecutive ranges that cover `0..n`, each of at most `grain` items, on all cores.
pub fn ranges(n: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
    let grain = grain.max(1);
    let parts = n.div_ceil(grain);
    if parts <= 1 {
        if n > 0 {
            f(0..n);
        }
        return;
    }
    (0..parts).into_par_iter().for_each(|p| f(p * grain..((p + 1) * grain).min(n)));
}

/// Rows to a task, for kernels whose rows cost `row` elements each.
pub fn rows_grain(row: usize) -> usize {
    (GRAIN / row.max(1)).max(1)
}

/// A result that several tasks write, each its own part.
pub struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: `part` hands out disjoint parts only, as its caller promises, so tasks never share an element.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared { data: slice.as_mut_ptr(), len: slice.len(), owner: std::marker::PhantomData }
    }

    /// The elements of `range`, to write.
    ///
    /// # Safety
    /// No two parts that are alive at once may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }

    /// The first of the elements of `range`, for kernels that write rows with gaps between them; what they write is theirs to
    /// keep apart.
    pub fn pointer(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion.
        unsafe { self.data.add(range.start) }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// No other task may write or read element `i` meanwhile.
    pub unsafe fn put(&self, i: usize, value: T) {
        assert!(i < self.len, "element {i} of {}", self.len);
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { self.data.add(i).write(value) }
    }
}

/// Lends `f` a buffer of this thread of `n` elements, which hold anything; the thread keeps it for the next time. `f` asks for
/// no other.
pub fn scratch<T: super::math::Real, R>(n: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
    }
    assert!(align_of::<T>() <= align_of::<f64>() && !std::mem::needs_drop::<T>());
    SCRATCH.with_borrow_mut(|words| {
        let needed = (n * size_of::<T>()).div_ceil(size_of::<f64>());
        if words.len() < needed {
            words.resize(needed, 0.0);
        }
        // SAFETY: T is f32 or f64, for which any bits are a value; the words are enough, aligned, and borrowed while f runs.
        f(unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<T>(), n) })
    })
}

/// Runs `f` compiled for the widest vector instructions this processor has.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    simd_call(f)
}

/// [`simd`] of a loop that is a value.
#[inline(always)]
pub fn simd_call<F: pulp::NullaryFnOnce>(f: F) -> F::Output {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    ARCH.get_or_init(pulp::Arch::new).dispatch(f)
}
