//! One warp: its lanes' program counters and the loop that executes instructions.
//!
//! Lanes that are at the same instruction form a fragment. The fragment with the lowest program counter runs first and
//! swallows the others as it reaches them, which reconverges structured code without an analysis of the graph. Warp-wide
//! operations wait until every lane they name has come.

use crate::async_copy::CopyQueue;
use crate::block::Block;
use crate::findings::FindingKind;
use crate::instruction::{BarrierReduction, Op};
use crate::registers::{LANES, Lanes32, Registers};
use crate::shadow::initialisation::RegisterShadow;

/// What a fragment waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    Ready,
    /// Other lanes of the warp, at the same instruction.
    Lanes,
    /// A barrier of the block.
    Barrier(u8),
}

/// Lanes at one program counter.
#[derive(Debug, Clone, Copy)]
pub struct Fragment {
    /// Next instruction.
    pub pc: u32,
    /// Lanes.
    pub mask: u32,
    /// What it waits for.
    pub wait: Wait,
    /// Where the result of `bar.red` goes.
    pub reduction: Option<BarrierReduction>,
}

/// Why `run` came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Every lane has exited.
    Done,
    /// Every lane that is left waits at a barrier of the block.
    Blocked,
    /// The quantum is used up.
    Quantum,
}

/// State of one warp.
#[derive(Debug)]
pub struct Warp<'c> {
    /// Number in the block.
    pub index: u32,
    /// Lanes that have not exited.
    pub live: u32,
    /// Register files.
    pub registers: Registers<'c>,
    /// Groups of lanes.
    pub fragments: Vec<Fragment>,
    /// Asynchronous copies not yet waited for.
    pub copies: CopyQueue,
    /// Local memory of all lanes, lane by lane.
    pub local: Vec<u8>,
    /// Which bytes of it have been written; empty without the check.
    pub local_defined: Vec<bool>,
    /// Definedness of the registers, when it is checked.
    pub shadow: Option<Box<RegisterShadow>>,
    /// Counts `bar.warp.sync` and everything that orders the lanes of the warp.
    pub epoch: u32,
}

/// What an instruction leaves behind for the control loop.
pub enum Next {
    /// Go on with the next instruction.
    Advance,
    /// The lanes of `taken` jump.
    Jump { target: u32, taken: u32 },
    /// Every lane has a target of its own.
    Scatter(Box<Lanes32>),
    /// The lanes of the mask exit.
    Exit(u32),
    /// Park the lanes at a barrier, behind the instruction.
    Park { id: u8, mask: u32, reduction: Option<BarrierReduction> },
    /// Not all lanes are here: wait without having done anything.
    Gather { mask: u32 },
}

impl<'c> Warp<'c> {
    /// A warp at the start of the kernel.
    pub fn new(
        index: u32,
        live: u32,
        registers: Registers<'c>,
        local_bytes: u32,
        shadow: Option<RegisterShadow>,
    ) -> Warp<'c> {
        let bytes = LANES * local_bytes as usize;
        Warp {
            index,
            live,
            registers,
            fragments: vec![Fragment { pc: 0, mask: live, wait: Wait::Ready, reduction: None }],
            copies: CopyQueue::default(),
            local: vec![0; bytes],
            local_defined: vec![false; if shadow.is_some() { bytes } else { 0 }],
            shadow: shadow.map(Box::new),
            epoch: 0,
        }
    }

    /// Some lane can go on.
    pub fn runnable(&self) -> bool {
        self.fragments.iter().any(|f| !matches!(f.wait, Wait::Barrier(_)))
    }

    // Takes the ready fragment with the lowest pc, merged with what stands there. `true`: it was only waiting for lanes
    // that cannot come, and must be forced.
    fn pick(&mut self) -> Option<(Fragment, bool)> {
        let lowest =
            |wanted: Wait, list: &[Fragment]| list.iter().filter(|f| f.wait == wanted).map(|f| f.pc).min();
        let (pc, forced) = match lowest(Wait::Ready, &self.fragments) {
            Some(pc) => (pc, false),
            None => (lowest(Wait::Lanes, &self.fragments)?, true),
        };
        let mut mask = 0;
        self.fragments.retain(|f| {
            let here = f.pc == pc && !matches!(f.wait, Wait::Barrier(_));
            mask |= if here { f.mask } else { 0 };
            !here
        });
        Some((Fragment { pc, mask, wait: Wait::Ready, reduction: None }, forced))
    }

    fn horizon(&self) -> u32 {
        self.fragments
            .iter()
            .filter(|f| !matches!(f.wait, Wait::Barrier(_)))
            .map(|f| f.pc)
            .min()
            .unwrap_or(u32::MAX)
    }

    /// Runs until the warp blocks, ends, or has executed about `quantum` instructions.
    pub fn run(&mut self, block: &mut Block<'_, '_>, quantum: u64) -> Stop {
        let code = &block.launch.kernel.code[..];
        let mut budget = quantum;
        while let Some((mut current, mut forced)) = self.pick() {
            let mut horizon = self.horizon();
            loop {
                if budget == 0 {
                    self.fragments.push(current);
                    return Stop::Quantum;
                }
                budget -= 1;
                let pc = current.pc;
                let instruction = &code[pc as usize];
                let mut mask = current.mask;
                if let Some(guard) = instruction.guard {
                    mask &= self.registers.predicate(guard);
                }
                block.count(pc, mask);
                block.before(self, instruction, pc, current.mask, mask);
                let next = if mask == 0 {
                    Next::Advance
                } else {
                    self.execute(block, instruction, pc, mask, std::mem::take(&mut forced))
                };
                match next {
                    Next::Advance => current.pc = pc + 1,
                    Next::Jump { target, taken } if taken == current.mask => current.pc = target,
                    Next::Jump { target, taken } => {
                        let (low, high) = if target <= pc {
                            ((target, taken), (pc + 1, current.mask & !taken))
                        } else {
                            ((pc + 1, current.mask & !taken), (target, taken))
                        };
                        self.park(high.0, high.1, Wait::Ready);
                        (current.pc, current.mask) = low;
                        horizon = horizon.min(high.0);
                    }
                    Next::Scatter(targets) => {
                        self.park(pc + 1, current.mask & !mask, Wait::Ready);
                        for lane in lanes(mask) {
                            self.park(targets[lane], 1 << lane, Wait::Ready);
                        }
                        break;
                    }
                    Next::Exit(gone) => {
                        self.live &= !gone;
                        current.mask &= !gone;
                        current.pc = pc + 1;
                        if current.mask == 0 {
                            break;
                        }
                    }
                    Next::Park { id, mask, reduction } => {
                        self.park(pc + 1, current.mask & !mask, Wait::Ready);
                        let wait = Wait::Barrier(id);
                        self.fragments.push(Fragment { pc: pc + 1, mask, wait, reduction });
                        break;
                    }
                    Next::Gather { mask } => {
                        self.park(pc + 1, current.mask & !mask, Wait::Ready);
                        self.park(pc, mask, Wait::Lanes);
                        break;
                    }
                }
                if current.pc >= horizon {
                    self.park(current.pc, current.mask, Wait::Ready);
                    break;
                }
            }
            if block.aborted {
                return Stop::Done;
            }
        }
        if self.fragments.is_empty() { Stop::Done } else { Stop::Blocked }
    }

    fn park(&mut self, pc: u32, mask: u32, wait: Wait) {
        if mask != 0 {
            self.fragments.push(Fragment { pc, mask, wait, reduction: None });
        }
    }

    /// Whether a warp-wide operation over `members` may go on with the lanes of `mask`. Lanes that are missing but can
    /// still come are waited for; otherwise this is a finding and the operation goes on with what is there.
    pub fn converged(
        &self,
        block: &mut Block<'_, '_>,
        pc: u32,
        mask: u32,
        members: u32,
        forced: bool,
    ) -> bool {
        let missing = members & self.live & !mask;
        if missing != 0 && !forced {
            return false;
        }
        let gone = members & block.lanes_of(self.index) & !self.live;
        if missing != 0 {
            let lane = mask.trailing_zeros();
            block.report(FindingKind::BarrierDivergence, pc, self.index, lane, mask.count_ones(), || {
                format!(
                    "lanes {missing:#010x} of the warp do not come to this operation, lanes {mask:#010x} do"
                )
            });
        } else if gone != 0 {
            let lane = mask.trailing_zeros();
            block.report(FindingKind::BarrierDivergence, pc, self.index, lane, mask.count_ones(), || {
                format!("the operation names lanes {gone:#010x}, which have exited")
            });
        } else if mask & !members != 0 {
            let lane = (mask & !members).trailing_zeros();
            block.report(FindingKind::BarrierDivergence, pc, self.index, lane, 1, || {
                format!("executed by lanes {mask:#010x}, but the member mask is {members:#010x}")
            });
        }
        true
    }

    /// Puts lanes back to work after a barrier; `false` if none waited there.
    pub fn release(&mut self, id: u8, count: u32, all: bool, any: bool) -> bool {
        if !self.fragments.iter().any(|f| f.wait == Wait::Barrier(id)) {
            return false;
        }
        for i in 0..self.fragments.len() {
            let fragment = self.fragments[i];
            if fragment.wait != Wait::Barrier(id) {
                continue;
            }
            match fragment.reduction {
                Some(BarrierReduction::Popc(d)) => self.registers.set_word(d, fragment.mask, &[count; LANES]),
                Some(BarrierReduction::And(p)) => {
                    self.registers.set_predicate(p, fragment.mask, if all { u32::MAX } else { 0 });
                }
                Some(BarrierReduction::Or(p)) => {
                    self.registers.set_predicate(p, fragment.mask, if any { u32::MAX } else { 0 });
                }
                None => {}
            }
            self.fragments[i] = Fragment { wait: Wait::Ready, reduction: None, ..fragment };
        }
        self.epoch += 1;
        true
    }
}

/// The lanes of a mask, in order.
#[inline]
pub fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}

/// Needs every lane of the warp that is alive, whatever a member mask says (`.aligned` operations).
pub fn is_aligned(op: &Op) -> bool {
    matches!(
        op,
        Op::Mma { .. }
            | Op::LoadMatrix { .. }
            | Op::StoreMatrix { .. }
            | Op::MoveMatrix { .. }
            | Op::Barrier { .. }
            | Op::BarrierArrive { .. }
    )
}
