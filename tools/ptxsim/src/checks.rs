//! Where the interpreter tells the checks what it does.

use crate::block::Block;
use crate::instruction::{Access, Group, Instruction, Reg};
use crate::memory::Allocation;
use crate::registers::Lanes64;
use crate::types::Space;
use crate::warp::Warp;

// A byte of device memory: its address, and the allocation and offset it resolves to.
pub(crate) type GlobalAt<'m> = (u64, &'m Allocation, u64);

impl Block<'_, '_> {
    #[inline]
    pub(crate) fn before(&mut self, _w: &mut Warp<'_>, _i: &Instruction, _pc: u32, _here: u32, _mask: u32) {}
    pub(crate) fn barrier_passed(&mut self) {}
    pub(crate) fn traffic(&mut self, _pc: u32, _s: Space, _a: &Lanes64, _b: u32, _mask: u32, _store: bool) {}
    pub(crate) fn traffic_matrix(&mut self, _pc: u32, _a: &Lanes64, _matrix: usize, _store: bool) {}
    pub(crate) fn observe_global(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        at: GlobalAt<'_>,
        bytes: u32,
        _s: bool,
    ) {
        self.observe_global_bits(w, pc, lane, at, bytes);
    }
    pub(crate) fn observe_global_bits(
        &mut self,
        _w: &Warp<'_>,
        _pc: u32,
        _l: usize,
        at: GlobalAt<'_>,
        bytes: u32,
    ) -> u32 {
        at.1.initialised(at.2, bytes)
    }
    pub(crate) fn observe_shared(
        &mut self,
        _w: &Warp<'_>,
        _pc: u32,
        _l: usize,
        _at: usize,
        _b: u32,
        _s: bool,
    ) {
    }
    pub(crate) fn observe_local(&mut self, _w: &Warp<'_>, _l: usize, _at: usize, _b: u32) {}
    pub(crate) fn loaded(&mut self, _w: &mut Warp<'_>, _d: Group, _a: Access, _mask: u32) {}
    pub(crate) fn matrix_loaded(&mut self, _w: &mut Warp<'_>, _d: Reg, _m: usize, _t: bool, _mask: u32) {}
    pub(crate) fn stored_bits(&mut self, _w: &Warp<'_>, _a: Group, _access: Access, _lane: usize) -> u32 {
        u32::MAX
    }
    pub(crate) fn record_global(
        &mut self,
        _w: &Warp<'_>,
        _pc: u32,
        _l: usize,
        at: GlobalAt<'_>,
        b: u32,
        v: (u32, bool),
    ) {
        at.1.set_initialised(at.2, b, v.0);
    }
    pub(crate) fn record_shared(
        &mut self,
        _w: &Warp<'_>,
        _pc: u32,
        _l: usize,
        _at: usize,
        _b: u32,
        _v: (u32, bool),
    ) {
    }
    pub(crate) fn record_local(&mut self, _w: &Warp<'_>, _at: usize, _b: u32, _v: u32) {}
    pub(crate) fn atomic_global(&mut self, _w: &Warp<'_>, _pc: u32, _l: usize, _at: GlobalAt<'_>, _b: u32) {}
    pub(crate) fn atomic_shared(&mut self, _w: &Warp<'_>, _pc: u32, _l: usize, _at: usize, _b: u32) {}
    pub(crate) fn copy_issued(&mut self, _w: &Warp<'_>, _pc: u32, _l: usize, _at: usize, _b: u32) {}
    pub(crate) fn copy_completed(
        &mut self,
        _w: &Warp<'_>,
        _pc: u32,
        _l: usize,
        _at: usize,
        _b: u32,
        _v: u32,
    ) {
    }
}
