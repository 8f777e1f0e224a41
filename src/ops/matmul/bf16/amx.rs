//! Blocks of results in AMX tiles, by inline assembly.

use super::operands::{Segment, Sum};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

/// Whether the processor has tiles of bf16, and the system lets this process use them.
pub fn available() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| has_tiles() && system_saves_tiles() && may_use_tiles())
}

/// Leaf 7 of `cpuid`: AMX-BF16 and AMX-TILE.
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILES) == BF16 | TILES
}

/// Whether the system keeps the tiles' configuration and data across switches of threads: bits 17 and 18 of XCR0.
fn system_saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: the system has turned the instruction on.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags)) };
    low >> 17 & 3 == 3
}

/// Asks Linux for the state of tiles: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`, for all threads of the process.
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: the call reads no memory of ours and changes none.
    unsafe {
        asm!("syscall", inout("rax") ARCH_PRCTL => result, in("rdi") REQUEST, in("rsi") TILE_DATA, out("rcx") _, out("r11") _,
             options(nostack));
    }
    result == 0
}

/// The operand of `ldtilecfg`: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILES: Configuration = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut i = 0;
    while i < 8 {
        (row_bytes[i], rows[i]) = (64, 16);
        i += 1;
    }
    Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// Gives this thread's tiles back when it is dropped, so that they need not be saved any more.
struct Configured;

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the processor has tiles, since they were configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Runs a task with this thread's tiles configured.
pub fn with_tiles(task: impl FnOnce()) {
    assert!(available());
    // SAFETY: the processor has tiles, and the configuration is one that it takes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &TILES, options(nostack, readonly)) };
    let _configured = Configured;
    task();
}

/// A function that computes a block of one form: its sums are loaded or zeroed, multiplied up along both segments, and stored, in one
/// piece of assembly, since the compiler knows no tile registers. Sums are tiles 0 to 3, left operands 4 and 5, right ones 6 and 7.
macro_rules! form {
    ($name:ident, load $load:tt, zero $zero:tt, step $step:tt, store $store:tt) => {
        form!(@ $name, $load, $zero, $step, $store);
    };
    (@ $name:ident, [$($load:literal)+], [$($zero:literal)+], [$($step:literal)+], [$($store:literal)+]) => {
        #[inline(always)]
        unsafe fn $name([first, second]: &[Segment; 2], sum: Sum) {
            // SAFETY: by the caller of `block`.
            unsafe {
                asm!(
                    "test {add}, {add}",
                    "jz 2f",
                    $($load,)+
                    "jmp 3f",
                    "2:",
                    $($zero,)+
                    "3:",
                    "test {n}, {n}",
                    "jz 5f",
                    "4:",
                    $($step,)+
                    "add {a}, 2048",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 4b",
                    "5:",
                    "mov {a}, {a2}",
                    "mov {b}, {b2}",
                    "mov {n}, {n2}",
                    "xor {n2:e}, {n2:e}",
                    "test {n}, {n}",
                    "jnz 4b",
                    $($store,)+
                    add = in(reg) sum.add as u64,
                    at = in(reg) sum.at,
                    down = in(reg) sum.at.wrapping_add(16 * sum.row),
                    row = in(reg) 4 * sum.row,
                    line = in(reg) 64u64,
                    a = inout(reg) first.left => _,
                    b = inout(reg) first.right => _,
                    n = inout(reg) first.tiles => _,
                    a2 = in(reg) second.left,
                    b2 = in(reg) second.right,
                    n2 = inout(reg) second.tiles => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

form!(two_by_two,
    load ["tileloadd tmm0, [{at} + {row}*1]" "tileloadd tmm1, [{at} + {row}*1 + 64]"
          "tileloadd tmm2, [{down} + {row}*1]" "tileloadd tmm3, [{down} + {row}*1 + 64]"],
    zero ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
    step ["tileloadd tmm4, [{a} + {line}*1]" "tileloadd tmm6, [{b} + {line}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
          "tileloadd tmm7, [{b} + {line}*1 + 1024]" "tdpbf16ps tmm1, tmm4, tmm7"
          "tileloadd tmm5, [{a} + {line}*1 + 1024]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"],
    store ["tilestored [{at} + {row}*1], tmm0" "tilestored [{at} + {row}*1 + 64], tmm1"
           "tilestored [{down} + {row}*1], tmm2" "tilestored [{down} + {row}*1 + 64], tmm3"]);

form!(two_by_one,
    load ["tileloadd tmm0, [{at} + {row}*1]" "tileloadd tmm2, [{down} + {row}*1]"],
    zero ["tilezero tmm0" "tilezero tmm2"],
    step ["tileloadd tmm4, [{a} + {line}*1]" "tileloadd tmm6, [{b} + {line}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
          "tileloadd tmm5, [{a} + {line}*1 + 1024]" "tdpbf16ps tmm2, tmm5, tmm6"],
    store ["tilestored [{at} + {row}*1], tmm0" "tilestored [{down} + {row}*1], tmm2"]);

form!(one_by_two,
    load ["tileloadd tmm0, [{at} + {row}*1]" "tileloadd tmm1, [{at} + {row}*1 + 64]" "/* {down} */"],
    zero ["tilezero tmm0" "tilezero tmm1"],
    step ["tileloadd tmm4, [{a} + {line}*1]" "tileloadd tmm6, [{b} + {line}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
          "tileloadd tmm7, [{b} + {line}*1 + 1024]" "tdpbf16ps tmm1, tmm4, tmm7"],
    store ["tilestored [{at} + {row}*1], tmm0" "tilestored [{at} + {row}*1 + 64], tmm1"]);

form!(one_by_one,
    load ["tileloadd tmm0, [{at} + {row}*1]" "/* {down} */"],
    zero ["tilezero tmm0"],
    step ["tileloadd tmm4, [{a} + {line}*1]" "tileloadd tmm6, [{b} + {line}*1]" "tdpbf16ps tmm0, tmm4, tmm6"],
    store ["tilestored [{at} + {row}*1], tmm0"]);

/// As [`super::block`], within [`with_tiles`].
pub unsafe fn block([tall, wide]: [usize; 2], segments: &[Segment; 2], sum: Sum) {
    // SAFETY: by the caller.
    unsafe {
        match (tall, wide) {
            (2, 2) => two_by_two(segments, sum),
            (2, _) => two_by_one(segments, sum),
            (_, 2) => one_by_two(segments, sum),
            _ => one_by_one(segments, sum),
        }
    }
}
