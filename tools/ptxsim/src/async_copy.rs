//! `cp.async`: a copy stays pending until its thread waits for its group, as the hardware is free to do.
//!
//! Source bytes are read when the copy is issued, the destination is written when it is waited for: a kernel that
//! forgets the wait sees the old bytes every time, not only on a bad day.

use crate::access::{Place, read_global, write_bytes};
use crate::block::Block;
use crate::findings::FindingKind;
use crate::instruction::{Address, Pred, Reg};
use crate::registers::LANES;
use crate::types::Space;
use crate::warp::{Warp, lanes};

#[derive(Debug, Clone, Copy)]
struct PendingCopy {
    lane: u8,
    bytes: u8,
    group: u32,
    target: u32,
    // Initialised bits of the bytes.
    valid: u32,
    words: [u32; 4],
}

/// Pending copies of a warp, oldest first.
#[derive(Debug, Default)]
pub struct CopyQueue {
    pending: Vec<PendingCopy>,
    // Groups that each lane has closed.
    committed: [u32; LANES],
}

impl CopyQueue {
    /// Closes the open group of each lane.
    pub fn commit(&mut self, mask: u32) {
        for lane in lanes(mask) {
            self.committed[lane] += 1;
        }
    }
}

impl Warp<'_> {
    pub(crate) fn copy_async(
        &mut self,
        block: &mut Block<'_, '_>,
        pc: u32,
        bytes: u8,
        source: Address,
        target: Address,
        (source_bytes, ignore): (Option<Reg>, Option<Pred>),
        mask: u32,
    ) {
        let (sources, targets) = (self.addresses(source), self.addresses(target));
        let size = u32::from(bytes);
        let ignored = ignore.map_or(0, |p| self.registers.predicate(p));
        let lengths = source_bytes.map(|r| *self.registers.word(r));
        let wanted = |lane: usize| {
            if ignored >> lane & 1 != 0 { 0 } else { lengths.map_or(size, |l| l[lane]) }
        };
        let reading = lanes(mask).filter(|&lane| wanted(lane) > 0).fold(0, |m, lane| m | 1 << lane);
        block.traffic(Space::Global, &sources, size, reading);
        block.traffic(Space::Shared, &targets, size, mask);
        for lane in lanes(mask) {
            let length = wanted(lane);
            if length > size {
                block.report(FindingKind::OutOfBounds, pc, self.index, lane as u32, 1, || {
                    format!("cp.async of {size} bytes with a source size of {length}")
                });
            }
            let length = length.min(size);
            let Some(Place::Shared(at)) = self.place(block, pc, lane, Space::Shared, targets[lane], size)
            else {
                continue;
            };
            let (mut words, mut valid) = ([0; 4], u32::MAX);
            if length > 0 {
                // Only `length` bytes are read, but the address has the alignment of the whole copy.
                (words, valid) = self.copy_source(block, pc, lane, sources[lane], size, length);
            }
            block.copy_issued(self, pc, lane, at, size);
            let group = self.copies.committed[lane];
            self.copies.pending.push(PendingCopy {
                lane: lane as u8,
                bytes,
                group,
                target: at as u32,
                valid,
                words,
            });
        }
    }

    fn copy_source(
        &self,
        block: &mut Block<'_, '_>,
        pc: u32,
        lane: usize,
        address: u64,
        size: u32,
        length: u32,
    ) -> ([u32; 4], u32) {
        if !address.is_multiple_of(u64::from(size)) {
            block.report(FindingKind::Misaligned, pc, self.index, lane as u32, 1, || {
                format!("source of a {size}-byte cp.async at {address:#x}")
            });
            return ([0; 4], u32::MAX);
        }
        let (mut words, mut valid) = ([0u32; 4], u32::MAX);
        let mut at = 0;
        while at < length {
            let step = if length - at >= 4 { 4 } else { 1 };
            let place = self.place(block, pc, lane, Space::Generic, address + u64::from(at), step);
            let Some(Place::Global(allocation, offset)) = place else { break };
            let from = (address + u64::from(at), allocation, offset);
            let bits = block.observe_global_bits(self, pc, lane, from, step);
            valid &= !(((1 << step) - 1) << at) | bits << at;
            words[(at / 4) as usize] |= read_global(allocation, offset, step)[0] << (8 * (at % 4));
            at += step;
        }
        (words, valid)
    }

    /// Completes the copies that the lanes of `mask` wait for.
    pub(crate) fn copy_wait(&mut self, block: &mut Block<'_, '_>, pc: u32, pending: Option<u32>, mask: u32) {
        let committed = self.copies.committed;
        let done = |copy: &PendingCopy| {
            let lane = usize::from(copy.lane);
            let waits = mask >> lane & 1 != 0;
            waits
                && match pending {
                    None => true,
                    Some(allowed) => copy.group + allowed < committed[lane],
                }
        };
        let mut queue = std::mem::take(&mut self.copies.pending);
        queue.retain(|copy| {
            let hit = done(copy);
            if hit {
                let (lane, at, bytes) = (usize::from(copy.lane), copy.target as usize, u32::from(copy.bytes));
                block.copy_completed(self, pc, lane, at, bytes, copy.valid);
                write_bytes(&mut block.shared, at, bytes, copy.words);
            }
            !hit
        });
        self.copies.pending = queue;
    }
}
