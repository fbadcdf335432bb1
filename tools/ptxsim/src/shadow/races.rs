//! Who touched a piece of memory last, and whether that is ordered before the access at hand.
//!
//! Every warp has a vector clock over the warps of its block; a barrier joins the clocks of those that meet there, so
//! barriers with ids and thread counts order exactly whom they order. Blocks of one launch are never ordered. Lanes of
//! one warp are ordered by `bar.warp.sync` and by barriers of the block only: since Volta, executing together is no
//! guarantee.

/// Warps of a block, at most.
pub const WARPS: usize = 32;
/// A vector clock.
pub type Clock = [u32; WARPS];

const NOBODY: u32 = u32::MAX;
const SEVERAL: u32 = u32::MAX - 1;

/// An access by one lane.
#[derive(Debug, Clone, Copy)]
pub struct Actor {
    /// Linear block number.
    pub block: u32,
    /// Warp in the block.
    pub warp: u32,
    /// Lane in the warp.
    pub lane: u32,
    /// The warp's own clock.
    pub clock: u32,
    /// Barriers of the whole block passed so far.
    pub epoch: u32,
    /// The warp's count of `bar.warp.sync`.
    pub warp_epoch: u32,
    /// Instruction.
    pub pc: u32,
    /// An atomic operation.
    pub atomic: bool,
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes the bytes that are already there; harmless if another lane of the same instruction put them there.
    Repeat,
}

/// What a race is between.
#[derive(Debug, Clone, Copy)]
pub struct Race {
    /// The other access was a write.
    pub other_wrote: bool,
    /// Instruction of the other access.
    pub other_pc: u32,
    /// Block, warp and lane of the other, where known.
    pub other: (u32, Option<u32>, Option<u32>),
}

/// Last write, and reads since.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    write: Actor,
    read: Actor,
}

const NONE: Actor =
    Actor { block: NOBODY, warp: 0, lane: 0, clock: 0, epoch: 0, warp_epoch: 0, pc: 0, atomic: false };

impl Default for Cell {
    fn default() -> Cell {
        Cell { write: NONE, read: NONE }
    }
}

// Whether `before` happened before the access of `now`, whose warp has the clock `clock`.
fn ordered(before: &Actor, now: &Actor, clock: &Clock) -> bool {
    if before.block == NOBODY {
        return true;
    }
    if before.block != now.block {
        return false;
    }
    if before.warp == SEVERAL {
        return before.epoch < now.epoch;
    }
    if before.warp != now.warp {
        return clock[before.warp as usize] >= before.clock;
    }
    before.lane == now.lane || before.warp_epoch < now.warp_epoch
}

impl Cell {
    /// Records an access; a conflict with an earlier one is returned.
    pub fn touch(&mut self, now: &Actor, action: Action, clock: &Clock) -> Option<Race> {
        let race = |other: &Actor, other_wrote| {
            let known = |v: u32| (v < SEVERAL).then_some(v);
            Some(Race {
                other_wrote,
                other_pc: other.pc,
                other: (other.block, known(other.warp), known(other.lane)),
            })
        };
        let again = self.write.block == now.block && self.write.warp == now.warp && self.write.pc == now.pc;
        let action = if action == Action::Repeat && !again { Action::Write } else { action };
        let both_atomic = now.atomic && self.write.atomic;
        let mut found = None;
        if !both_atomic && !ordered(&self.write, now, clock) && action != Action::Repeat {
            found = race(&self.write, true);
        }
        match action {
            Action::Read => self.add_reader(now),
            Action::Write | Action::Repeat => {
                if found.is_none() && action == Action::Write && !ordered(&self.read, now, clock) {
                    found = race(&self.read, false);
                }
                self.write = *now;
                self.read = NONE;
            }
        }
        found
    }

    // Several readers are remembered as one: what they have in common, and the latest epoch.
    fn add_reader(&mut self, now: &Actor) {
        let old = &mut self.read;
        if old.block == NOBODY || (old.block == now.block && old.epoch < now.epoch) {
            *old = *now;
            return;
        }
        if old.block != now.block {
            old.block = SEVERAL;
            return;
        }
        if old.warp != now.warp {
            old.warp = SEVERAL;
            old.lane = SEVERAL;
        } else if old.lane != now.lane {
            let same = old.warp_epoch == now.warp_epoch;
            *old = *now;
            if same {
                old.lane = SEVERAL;
            }
        } else {
            *old = *now;
        }
        old.pc = now.pc;
    }
}

/// Cells of device memory, made page by page as they are touched.
#[derive(Debug, Default)]
pub struct Pages {
    pages: std::collections::HashMap<u64, Box<[Cell]>>,
}

const PAGE: u64 = 256;

impl Pages {
    /// The cell of a granule; `number` is the address divided by the granule's size.
    pub fn cell(&mut self, number: u64) -> &mut Cell {
        let page = self
            .pages
            .entry(number / PAGE)
            .or_insert_with(|| vec![Cell::default(); PAGE as usize].into_boxed_slice());
        &mut page[(number % PAGE) as usize]
    }
}
