//! The tile instructions. `std::arch` has them in nightly compilers only, hence assembly; everything else of a product is Rust.

use super::{Block, PANEL_WORDS, TILE_LANES, TILE_WORDS};
use crate::ops::simd::{self, Level};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

/// Bytes of a tile's row, the distance between rows of packed tiles.
const ROW_BYTES: usize = 64;

/// Whether the processor has bf16 tiles and the kernel lets this process use them. Not if `SECATEUR_SIMD` chooses a level.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE
        .get_or_init(|| simd::level() == Level::Avx512 && !simd::is_lowered() && reported() && permitted())
}

/// AMX-TILE and AMX-BF16 in leaf 7.
fn reported() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    // The level is AVX-512, so leaf 7 exists; asked all the same.
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == (AMX_BF16 | AMX_TILE)
}

/// Asks Linux for the tile registers: 8 KiB more to save for each thread, which a process has to request (once, for all
/// its threads). Fails where the kernel does not know them.
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: this system call changes nothing but the permission; rcx and r11 are what system calls overwrite.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Operand of LDTILECFG: palette 1, and eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The shapes this module uses, as long as it lives; then the tiles are given back, so that the thread's state is small again.
pub(super) struct Configured(());

impl Configured {
    /// # Safety
    /// [`available`] answered yes.
    pub(super) unsafe fn new() -> Configured {
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(ROW_BYTES as u16);
        configuration.rows[..8].fill(TILE_LANES as u8);
        // SAFETY: the instruction exists (the caller's promise) and reads the 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const configuration,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
        Configured(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: only made where the instruction exists.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
}

/// Four accumulators, tmm0 to tmm3 in reading order; tiles of A in tmm4 and tmm5, of B in tmm6 and tmm7.
///
/// # Safety
/// The thread is [`Configured`]; the block's panels and the whole of its 32 × 32 C are there.
pub(super) unsafe fn multiply(block: &Block) {
    let &Block { tiles, a, b, c, ldc, resume } = block;
    // SAFETY: reads `tiles` steps of either panel and, to resume, C; writes C. All inside, as the caller promises.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {resume}, {resume}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {ldc}]",
            "tileloadd tmm1, [{c} + {ldc} + {half}]",
            "tileloadd tmm2, [{lower} + {ldc}]",
            "tileloadd tmm3, [{lower} + {ldc} + {half}]",
            "2:",
            "test {tiles}, {tiles}",
            "jz 4f",
            "3:",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{b} + {row} + {tile}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {row} + {tile}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, {panel}",
            "add {b}, {panel}",
            "dec {tiles}",
            "jnz 3b",
            "4:",
            "tilestored [{c} + {ldc}], tmm0",
            "tilestored [{c} + {ldc} + {half}], tmm1",
            "tilestored [{lower} + {ldc}], tmm2",
            "tilestored [{lower} + {ldc} + {half}], tmm3",
            resume = in(reg) usize::from(resume),
            c = in(reg) c,
            lower = in(reg) c.add(TILE_LANES * ldc),
            ldc = in(reg) 4 * ldc,
            row = in(reg) ROW_BYTES,
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            tiles = inout(reg) tiles => _,
            half = const 4 * TILE_LANES,
            tile = const 4 * TILE_WORDS,
            panel = const 4 * PANEL_WORDS,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
