//! Where the interpreter tells the checks what it does, and where their verdicts become findings.

use crate::block::Block;
use crate::findings::FindingKind;
use crate::instruction::{Access, Group, Instruction, Reg};
use crate::memory::{Allocation, SHARED_WINDOW};
use crate::registers::{LANES, Lanes64};
use crate::shadow::initialisation::Undefined;
use crate::shadow::outputs::{Expected, Hit};
use crate::shadow::races::{Action, Actor, Cell, Clock, Pages, Race, WARPS};
use crate::step::space_of;
use crate::traffic::Traffic;
use crate::types::Space;
use crate::warp::Warp;

/// A byte of device memory: its address, and the allocation and offset it resolves to.
pub(crate) type GlobalAt<'m> = (u64, &'m Allocation, u64);

/// What the checks remember across the blocks of a launch.
#[derive(Debug, Default)]
pub(crate) struct LaunchShadow {
    /// Races in device memory.
    pub pages: Pages,
    /// Declared outputs.
    pub expected: Vec<Expected>,
}

/// What the checks remember within a block.
#[derive(Debug)]
pub(crate) struct BlockShadow {
    /// Clock of each warp.
    pub clocks: Vec<Clock>,
    /// Barriers of the whole block.
    pub epoch: u32,
    /// Traffic.
    pub traffic: Traffic,
    // Shared memory: defined bytes, race cells by granule, and pc + 1 of the pending copy into a byte.
    shared_defined: Vec<bool>,
    cells: Vec<Cell>,
    pending: Vec<u32>,
    // Defined bytes of what the lanes of the current instruction load.
    loaded: [u16; LANES],
}

impl BlockShadow {
    pub(crate) fn new(warps: usize, shared_bytes: usize, granule: u32, races: bool) -> BlockShadow {
        let mut clocks = vec![[0; WARPS]; warps];
        for (warp, clock) in clocks.iter_mut().enumerate() {
            clock[warp] = 1;
        }
        let cells = if races { shared_bytes.div_ceil(granule as usize) } else { 0 };
        BlockShadow {
            clocks,
            epoch: 1,
            traffic: Traffic::default(),
            shared_defined: vec![false; shared_bytes],
            cells: vec![Cell::default(); cells],
            pending: vec![0; if races { shared_bytes } else { 0 }],
            loaded: [0; LANES],
        }
    }
}

fn width_bits(bytes: u32) -> u32 {
    if bytes >= 32 { u32::MAX } else { (1 << bytes) - 1 }
}

impl Block<'_, '_> {
    fn actor(&self, warp: &Warp<'_>, pc: u32, lane: usize, atomic: bool) -> Actor {
        let [x, y, z] = self.index;
        let grid = self.launch.grid;
        Actor {
            block: x + grid[0] * (y + grid[1] * z),
            warp: warp.index,
            lane: lane as u32,
            clock: self.shadow.clocks[warp.index as usize][warp.index as usize],
            epoch: self.shadow.epoch,
            warp_epoch: warp.epoch,
            pc,
            atomic,
        }
    }

    /// Before an instruction: `here` are the lanes that came to it, `mask` those that its guard lets through.
    #[inline]
    pub(crate) fn before(&mut self, w: &mut Warp<'_>, i: &Instruction, pc: u32, here: u32, mask: u32) {
        if w.shadow.is_some() {
            self.follow(w, i, pc, here, mask);
        }
    }

    fn follow(&mut self, w: &mut Warp<'_>, i: &Instruction, pc: u32, here: u32, mask: u32) {
        let Some(mut shadow) = w.shadow.take() else { return };
        let mut report = |found: Undefined| self.undefined(pc, w.index, found);
        if let Some(guard) = i.guard
            && let Some(found) = shadow.guard(guard, here)
        {
            report(found);
        }
        if mask != 0 {
            shadow.follow(i, &w.registers, mask, &mut report);
        }
        w.shadow = Some(shadow);
    }

    fn undefined(&mut self, pc: u32, warp: u32, found: Undefined) {
        let origin = self.origin(found.origin);
        let lane = found.lanes.trailing_zeros();
        self.report(FindingKind::Uninitialised, pc, warp, lane, found.lanes.count_ones(), || {
            format!("a value that was never written {}; {origin}", found.role)
        });
    }

    fn origin(&self, origin: u32) -> String {
        match origin.checked_sub(1) {
            Some(pc) => format!("it was loaded at {}", self.place_name(pc)),
            None => "it comes from a register that was never set".into(),
        }
    }

    fn place_name(&self, pc: u32) -> String {
        let instruction = &self.launch.kernel.code[pc as usize];
        self.launch.module.describe(instruction.location, instruction.line)
    }

    // ---- device memory -------------------------------------------------------------------------------------------

    pub(crate) fn observe_global(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        at: GlobalAt<'_>,
        bytes: u32,
        strong: bool,
    ) {
        if !strong {
            self.global_race(w, pc, lane, at, bytes, Action::Read, false);
        }
        if self.launch.options.checks.uninitialised {
            self.shadow.loaded[lane] = at.1.initialised(at.2, bytes) as u16;
        }
    }

    /// The same for part of a `cp.async`; returns the defined bytes.
    pub(crate) fn observe_global_bits(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        at: GlobalAt<'_>,
        bytes: u32,
    ) -> u32 {
        self.global_race(w, pc, lane, at, bytes, Action::Read, false);
        at.1.initialised(at.2, bytes)
    }

    pub(crate) fn record_global(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        at: GlobalAt<'_>,
        bytes: u32,
        (valid, strong, same): (u32, bool, bool),
    ) {
        let wanted = width_bits(bytes);
        if valid & wanted != wanted {
            let origin = self.origin(self.stored_origin);
            let what = self.launch.memory.describe(at.0);
            self.report(FindingKind::Uninitialised, pc, w.index, lane as u32, 1, || {
                format!("a value that was never written is stored at {what}; {origin}")
            });
        }
        at.1.set_initialised(at.2, bytes, valid & wanted);
        if !strong {
            self.global_race(
                w,
                pc,
                lane,
                at,
                bytes,
                if same { Action::Repeat } else { Action::Write },
                false,
            );
        }
        self.expected_write(w, pc, lane, at, bytes);
    }

    pub(crate) fn atomic_global(&mut self, w: &Warp<'_>, pc: u32, lane: usize, at: GlobalAt<'_>, bytes: u32) {
        let bits = at.1.initialised(at.2, bytes);
        if self.launch.options.checks.uninitialised && bits != width_bits(bytes) {
            let what = self.launch.memory.describe(at.0);
            self.report(FindingKind::Uninitialised, pc, w.index, lane as u32, 1, || {
                format!("an atomic operation on {what}, which was never written")
            });
            at.1.set_initialised(at.2, bytes, u32::MAX);
        }
        self.global_race(w, pc, lane, at, bytes, Action::Write, true);
    }

    fn global_race(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        (address, ..): GlobalAt<'_>,
        bytes: u32,
        action: Action,
        atomic: bool,
    ) {
        let Some(mut launch) = self.launch_shadow.take() else { return };
        if self.launch.options.checks.global_races {
            let actor = self.actor(w, pc, lane, atomic);
            let granule = u64::from(self.launch.kernel.global_granule);
            let clock = self.shadow.clocks[w.index as usize];
            let last = (address + u64::from(bytes) - 1) / granule;
            let mut found = None;
            for number in address / granule..=last {
                let race = launch.pages.cell(number).touch(&actor, action, &clock);
                found = found.or(race);
            }
            if let Some(race) = found {
                let what = self.launch.memory.describe(address);
                self.race(FindingKind::GlobalRace, pc, &actor, action, race, &what);
            }
        }
        self.launch_shadow = Some(launch);
    }

    fn race(&mut self, kind: FindingKind, pc: u32, now: &Actor, action: Action, race: Race, what: &str) {
        let other_place = self.place_name(race.other_pc);
        let (block, warp, lane) = race.other;
        let by = if block != now.block {
            match block {
                b if b < u32::MAX - 1 => format!("block {:?}", self.launch.block(b.into())),
                _ => "several blocks".into(),
            }
        } else if warp != Some(now.warp) {
            match warp {
                Some(warp) => format!("warp {warp} without a barrier between"),
                None => "several warps without a barrier between".into(),
            }
        } else {
            match lane {
                Some(lane) if race.other_pc == pc => format!("lane {lane} in the same instruction"),
                Some(lane) => format!("lane {lane} of the same warp without a `__syncwarp` between"),
                None => "several lanes of the same warp without a `__syncwarp` between".into(),
            }
        };
        let did = if race.other_wrote { "written" } else { "read" };
        let does = if action == Action::Read { "reads" } else { "writes" };
        self.report(kind, pc, now.warp, now.lane, 1, || {
            format!("{does} {what}, which was {did} at {other_place} by {by}")
        });
    }

    fn expected_write(&mut self, w: &Warp<'_>, pc: u32, lane: usize, at: GlobalAt<'_>, bytes: u32) {
        let Some(mut launch) = self.launch_shadow.take() else { return };
        for expected in &mut launch.expected {
            expected.write(at.0, bytes.into(), |hit| {
                let (kind, text) = match hit {
                    Hit::Twice(row, column) => {
                        (FindingKind::WrittenTwice, format!("element ({row}, {column}) gets a second value"))
                    }
                    Hit::Padding(row, column) => (
                        FindingKind::PaddingWritten,
                        format!("row {row} is written at column {column}, behind its end"),
                    ),
                };
                let name = &at.1.name;
                self.report(kind, pc, w.index, lane as u32, 1, || format!("output `{name}`: {text}"));
            });
        }
        self.launch_shadow = Some(launch);
    }

    // ---- shared and local memory -----------------------------------------------------------------------------------

    fn shared_touch(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        at: usize,
        bytes: u32,
        action: Action,
        atomic: bool,
    ) {
        if !self.launch.options.checks.shared_races {
            return;
        }
        let actor = self.actor(w, pc, lane, atomic);
        let granule = self.launch.kernel.shared_granule as usize;
        let clock = self.shadow.clocks[w.index as usize];
        let last = (at + bytes as usize - 1) / granule;
        let mut found = None;
        for cell in &mut self.shadow.cells[at / granule..=last] {
            let race = cell.touch(&actor, action, &clock);
            found = found.or(race);
        }
        if let Some(race) = found {
            self.race(
                FindingKind::SharedRace,
                pc,
                &actor,
                action,
                race,
                &format!("byte {at} of shared memory"),
            );
        }
    }

    fn pending_copy(&mut self, w: &Warp<'_>, pc: u32, lane: usize, at: usize, bytes: u32) {
        if !self.launch.options.checks.shared_races {
            return;
        }
        let Some(&copy) = self.shadow.pending[at..at + bytes as usize].iter().find(|&&p| p != 0) else {
            return;
        };
        let issued = self.place_name(copy - 1);
        self.report(FindingKind::MissingCopyWait, pc, w.index, lane as u32, 1, || {
            format!("byte {at} of shared memory is touched while the cp.async issued at {issued} is pending")
        });
    }

    pub(crate) fn observe_shared(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        at: usize,
        bytes: u32,
        strong: bool,
    ) {
        self.pending_copy(w, pc, lane, at, bytes);
        if !strong {
            self.shared_touch(w, pc, lane, at, bytes, Action::Read, false);
        }
        if self.launch.options.checks.uninitialised {
            let defined = &self.shadow.shared_defined[at..at + bytes as usize];
            self.shadow.loaded[lane] = defined.iter().enumerate().fold(0, |b, (i, &d)| b | u16::from(d) << i);
        }
    }

    pub(crate) fn record_shared(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        at: usize,
        bytes: u32,
        (valid, strong, same): (u32, bool, bool),
    ) {
        self.pending_copy(w, pc, lane, at, bytes);
        if !strong {
            self.shared_touch(
                w,
                pc,
                lane,
                at,
                bytes,
                if same { Action::Repeat } else { Action::Write },
                false,
            );
        }
        self.define_shared(at, bytes, valid);
    }

    fn define_shared(&mut self, at: usize, bytes: u32, valid: u32) {
        if self.launch.options.checks.uninitialised {
            for (i, defined) in self.shadow.shared_defined[at..at + bytes as usize].iter_mut().enumerate() {
                *defined = valid >> i & 1 != 0;
            }
        }
    }

    pub(crate) fn atomic_shared(&mut self, w: &Warp<'_>, pc: u32, lane: usize, at: usize, bytes: u32) {
        self.pending_copy(w, pc, lane, at, bytes);
        if self.launch.options.checks.uninitialised
            && !self.shadow.shared_defined[at..at + bytes as usize].iter().all(|&d| d)
        {
            self.report(FindingKind::Uninitialised, pc, w.index, lane as u32, 1, || {
                format!("an atomic operation on byte {at} of shared memory, which was never written")
            });
        }
        self.shared_touch(w, pc, lane, at, bytes, Action::Write, true);
        self.define_shared(at, bytes, u32::MAX);
    }

    pub(crate) fn observe_local(&mut self, w: &Warp<'_>, lane: usize, at: usize, bytes: u32) {
        if self.launch.options.checks.uninitialised {
            let defined = &w.local_defined[at..at + bytes as usize];
            self.shadow.loaded[lane] = defined.iter().enumerate().fold(0, |b, (i, &d)| b | u16::from(d) << i);
        }
    }

    pub(crate) fn record_local(&mut self, w: &mut Warp<'_>, at: usize, bytes: u32, valid: u32) {
        if self.launch.options.checks.uninitialised {
            for (i, defined) in w.local_defined[at..at + bytes as usize].iter_mut().enumerate() {
                *defined = valid >> i & 1 != 0;
            }
        }
    }

    // ---- values of loads and stores --------------------------------------------------------------------------------

    /// A lane's access failed: what it loads is a zero that counts as defined, since the fault is reported already.
    pub(crate) fn faulted(&mut self, lane: usize) {
        self.shadow.loaded[lane] = u16::MAX;
    }

    pub(crate) fn loaded(&mut self, w: &mut Warp<'_>, pc: u32, d: Group, access: Access, mask: u32) {
        if let Some(shadow) = w.shadow.as_mut() {
            shadow.loaded(d, access, mask, &self.shadow.loaded, pc);
        }
    }

    pub(crate) fn matrix_loaded(
        &mut self,
        w: &mut Warp<'_>,
        pc: u32,
        d: Reg,
        matrix: usize,
        transposed: bool,
        mask: u32,
    ) {
        if let Some(shadow) = w.shadow.as_mut() {
            shadow.matrix_loaded(d, transposed, mask, &self.shadow.loaded[8 * matrix..8 * matrix + 8], pc);
        }
    }

    pub(crate) fn stored_bits(&mut self, w: &Warp<'_>, a: Group, access: Access, lane: usize) -> u32 {
        match &w.shadow {
            Some(shadow) => {
                let (bits, origin) = shadow.stored(a, access, lane);
                self.stored_origin = origin;
                bits
            }
            None => u32::MAX,
        }
    }

    // ---- asynchronous copies ---------------------------------------------------------------------------------------

    /// The copy may write from now on: to the race check it is a write at issue and again at completion.
    pub(crate) fn copy_issued(&mut self, w: &Warp<'_>, pc: u32, lane: usize, at: usize, bytes: u32) {
        if !self.launch.options.checks.shared_races {
            return;
        }
        self.pending_copy(w, pc, lane, at, bytes);
        self.shared_touch(w, pc, lane, at, bytes, Action::Write, false);
        self.shadow.pending[at..at + bytes as usize].fill(pc + 1);
    }

    pub(crate) fn copy_completed(
        &mut self,
        w: &Warp<'_>,
        pc: u32,
        lane: usize,
        at: usize,
        bytes: u32,
        valid: u32,
    ) {
        if self.launch.options.checks.shared_races {
            self.shadow.pending[at..at + bytes as usize].fill(0);
            self.shared_touch(w, pc, lane, at, bytes, Action::Write, false);
        }
        self.define_shared(at, bytes, valid);
    }

    // ---- traffic ---------------------------------------------------------------------------------------------------

    pub(crate) fn traffic(&mut self, space: Space, addresses: &Lanes64, bytes: u32, mask: u32) {
        if !self.launch.options.checks.traffic || mask == 0 {
            return;
        }
        // A warp's generic access is counted by where its first lane goes.
        let space = match space {
            Space::Generic => space_of(addresses[mask.trailing_zeros() as usize]),
            space => space,
        };
        match space {
            Space::Shared => {
                // The window is a multiple of the banks, so generic addresses hit the same ones.
                const { assert!(SHARED_WINDOW.is_multiple_of(128)) };
                self.shadow.traffic.shared(addresses, bytes, mask);
            }
            Space::Global => self.shadow.traffic.global(addresses, bytes, mask),
            _ => {}
        }
    }

    pub(crate) fn traffic_matrix(&mut self, addresses: &Lanes64, matrix: usize) {
        if self.launch.options.checks.traffic {
            self.shadow.traffic.matrix(addresses, matrix);
        }
    }
}
