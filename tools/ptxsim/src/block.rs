//! One block: its shared memory, its barriers, and turns for its warps.

use std::collections::HashMap;

use crate::checks::{BlockShadow, LaunchShadow};
use crate::findings::{Finding, FindingKind};
use crate::instruction::Constant;
use crate::machine::{Checks, Options};
use crate::memory::GlobalMemory;
use crate::module::{Kernel, Module, Special};
use crate::registers::{Constants, LANES, Registers};
use crate::shadow::initialisation::RegisterShadow;
use crate::shadow::races::Clock;
use crate::traffic::Traffic;
use crate::warp::{Stop, Warp};

/// Instructions that a warp executes in one turn.
const QUANTUM: u64 = 4096;

/// What all blocks of a launch share.
#[derive(Debug)]
pub struct Launch<'m> {
    /// The module.
    pub module: &'m Module,
    /// The kernel.
    pub kernel: &'m Kernel,
    /// Device memory.
    pub memory: &'m GlobalMemory,
    /// Constants of this launch.
    pub constants: Constants,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Options of the machine.
    pub options: Options,
}

impl Launch<'_> {
    /// Threads of a block.
    pub fn block_threads(&self) -> u32 {
        self.threads.iter().product()
    }

    /// Coordinates of a thread.
    pub fn thread(&self, linear: u32) -> [u32; 3] {
        let [x, y, _] = self.threads;
        [linear % x, linear / x % y, linear / (x * y)]
    }

    /// Coordinates of a block.
    pub fn block(&self, linear: u64) -> [u32; 3] {
        let (x, y) = (u64::from(self.grid[0]), u64::from(self.grid[1]));
        [(linear % x) as u32, (linear / x % y) as u32, (linear / (x * y)) as u32]
    }

    /// Evaluates the kernel's constants.
    pub fn constants(kernel: &Kernel, variables: &[u64], parameters: &[u8]) -> Constants {
        let value = |constant: &Constant| match *constant {
            Constant::Bits(bits) => bits,
            Constant::Variable { index, offset } => variables[index as usize].wrapping_add_signed(offset),
            Constant::Parameter { offset, bytes, signed } => {
                let mut raw = [0; 8];
                raw[..bytes as usize]
                    .copy_from_slice(&parameters[offset as usize..(offset + bytes) as usize]);
                let value = u64::from_le_bytes(raw);
                let spare = 64 - 8 * bytes;
                if signed { (((value << spare) as i64) >> spare) as u64 } else { value }
            }
        };
        Constants::new(&kernel.constants.iter().map(value).collect::<Vec<_>>())
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Barrier {
    arrived: u32,
    expected: Option<u32>,
    votes: u32,
    waiting: bool,
    // Join of the clocks of those who have arrived.
    clock: Clock,
}

/// What a block reports when it has run.
#[derive(Debug, Default)]
pub struct BlockReport {
    /// Coordinates of the block.
    pub index: [u32; 3],
    /// Warp instructions and lane instructions by pc.
    pub executed: Vec<[u64; 2]>,
    /// Findings by kind and pc.
    pub findings: HashMap<(FindingKind, u32), Finding>,
    /// Bank conflicts and sectors.
    pub traffic: Traffic,
    /// The instruction limit was reached at this pc.
    pub limit_at: Option<u32>,
}

/// State of one running block.
#[derive(Debug)]
pub struct Block<'m, 'l> {
    /// The launch.
    pub launch: &'l Launch<'m>,
    /// Coordinates.
    pub index: [u32; 3],
    /// Shared memory.
    pub shared: Vec<u8>,
    /// Set by `trap` and by the instruction limit: nothing runs any more.
    pub aborted: bool,
    /// What has been seen.
    pub output: BlockReport,
    pub(crate) shadow: BlockShadow,
    /// No check looks at memory accesses beyond bounds and alignment.
    pub(crate) plain: bool,
    /// Present when blocks run one after another.
    pub(crate) launch_shadow: Option<Box<LaunchShadow>>,
    /// Origin of the undefined value that is being stored.
    pub(crate) stored_origin: u32,
    steps: u64,
    barriers: [Barrier; 16],
}

/// A small generator (splitmix64) for the order of warps and blocks.
#[derive(Debug, Clone)]
pub struct Order(u64);

impl Order {
    /// Seeded.
    pub fn new(seed: u64) -> Order {
        Order(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

impl<'m, 'l> Block<'m, 'l> {
    /// A block that has not started.
    pub(crate) fn new(
        launch: &'l Launch<'m>,
        index: [u32; 3],
        launch_shadow: Option<Box<LaunchShadow>>,
    ) -> Block<'m, 'l> {
        let bytes = launch.kernel.shared_bytes + launch.dynamic_shared;
        let warps = launch.block_threads().div_ceil(LANES as u32) as usize;
        let races = launch.options.checks.shared_races;
        Block {
            launch,
            index,
            shared: vec![0; bytes as usize],
            aborted: false,
            output: BlockReport {
                index,
                executed: vec![[0; 2]; launch.kernel.code.len()],
                ..BlockReport::default()
            },
            shadow: BlockShadow::new(warps, bytes as usize, launch.kernel.shared_granule, races),
            plain: launch.options.checks == Checks::none()
                && launch_shadow.as_ref().is_none_or(|s| s.expected.is_empty()),
            launch_shadow,
            stored_origin: 0,
            steps: 0,
            barriers: [Barrier::default(); 16],
        }
    }

    /// Lanes of a warp that belong to threads.
    pub fn lanes_of(&self, warp: u32) -> u32 {
        let left = self.launch.block_threads() - warp * LANES as u32;
        if left >= 32 { u32::MAX } else { (1 << left) - 1 }
    }

    /// Runs the block to its end.
    pub(crate) fn run(mut self, mut order: Order) -> (BlockReport, Option<Box<LaunchShadow>>) {
        let launch = self.launch;
        let count = launch.block_threads().div_ceil(LANES as u32);
        let mut warps: Vec<Warp<'l>> = (0..count)
            .map(|index| {
                let mut registers = Registers::new(&launch.constants, launch.kernel.registers);
                self.fill_specials(index, &mut registers);
                let shadow =
                    launch.options.checks.uninitialised.then(|| RegisterShadow::new(launch.kernel.registers));
                Warp::new(index, self.lanes_of(index), registers, launch.kernel.local_bytes, shadow)
            })
            .collect();
        let mut turns: Vec<usize> = (0..warps.len()).collect();
        while !self.aborted {
            order.shuffle(&mut turns);
            let (mut progress, mut running) = (false, false);
            for &turn in &turns {
                let warp = &mut warps[turn];
                if !warp.runnable() {
                    continue;
                }
                progress = true;
                running |= warp.run(&mut self, QUANTUM) != Stop::Done;
                if self.aborted {
                    break;
                }
            }
            let released = self.release(&mut warps);
            if !progress && !released {
                if !running && warps.iter().any(|w| !w.fragments.is_empty()) {
                    self.deadlock(&warps);
                }
                break;
            }
        }
        self.output.traffic = self.shadow.traffic;
        (self.output, self.launch_shadow)
    }

    fn fill_specials(&self, warp: u32, registers: &mut Registers<'_>) {
        let launch = self.launch;
        for &(special, index) in &launch.kernel.specials {
            let value = std::array::from_fn(|lane| {
                let lane = lane as u32;
                let thread = launch.thread(warp * LANES as u32 + lane);
                match special {
                    Special::Tid(axis) => thread[usize::from(axis)],
                    Special::Ntid(axis) => launch.threads[usize::from(axis)],
                    Special::Ctaid(axis) => self.index[usize::from(axis)],
                    Special::Nctaid(axis) => launch.grid[usize::from(axis)],
                    Special::Laneid => lane,
                    Special::Warpid => warp,
                    Special::Nwarpid => launch.block_threads().div_ceil(LANES as u32),
                    Special::Smid | Special::Gridid => 0,
                    Special::Nsmid => 1,
                    Special::LanemaskEq => 1 << lane,
                    Special::LanemaskLt => (1 << lane) - 1,
                    Special::LanemaskLe => (2u64 << lane).wrapping_sub(1) as u32,
                    Special::LanemaskGt => !((2u64 << lane).wrapping_sub(1) as u32),
                    Special::LanemaskGe => !((1u32 << lane) - 1),
                    Special::DynamicSharedSize => launch.dynamic_shared,
                    Special::TotalSharedSize => launch.kernel.shared_bytes + launch.dynamic_shared,
                }
            });
            registers.set_word(crate::instruction::Reg::variable(index), u32::MAX, &value);
        }
    }

    /// Counts an instruction.
    #[inline]
    pub fn count(&mut self, pc: u32, mask: u32) {
        let executed = &mut self.output.executed[pc as usize];
        executed[0] += 1;
        executed[1] += u64::from(mask.count_ones());
        self.steps += 1;
        if self.steps > self.launch.options.instruction_limit {
            self.output.limit_at.get_or_insert(pc);
            self.aborted = true;
        }
    }

    /// A clock that moves on with every instruction of the block.
    pub fn clock(&self) -> u64 {
        self.steps
    }

    /// Lanes of a warp arrive at a barrier. Returns its number, made valid.
    pub fn arrive(&mut self, pc: u32, warp: u32, id: u32, threads: Option<u32>, mask: u32, votes: u32) -> u8 {
        let lane = mask.trailing_zeros();
        let all = self.launch.block_threads();
        if id > 15 {
            self.report(FindingKind::BarrierDivergence, pc, warp, lane, 1, || {
                format!("barrier {id} does not exist")
            });
        }
        if let Some(count) = threads
            && (count == 0 || !count.is_multiple_of(32) || count > all.next_multiple_of(32))
        {
            self.report(FindingKind::BarrierDivergence, pc, warp, lane, 1, || {
                format!("barrier {id} for {count} threads in a block of {all}")
            });
        }
        let id = (id & 15) as u8;
        let barrier = &mut self.barriers[usize::from(id)];
        let clash = barrier.arrived > 0 && barrier.expected != threads;
        // A warp counts whole: the ISA's unit of a barrier with a count is the warp.
        barrier.arrived += if threads.is_some() { LANES as u32 } else { mask.count_ones() };
        barrier.expected = threads;
        barrier.votes += votes.count_ones();
        barrier.waiting = true;
        let clock = &mut self.shadow.clocks[warp as usize];
        for (joined, own) in barrier.clock.iter_mut().zip(&*clock) {
            *joined = (*joined).max(*own);
        }
        // What the warp does from now on is not covered by this arrival.
        clock[warp as usize] += 1;
        if clash {
            self.report(FindingKind::BarrierDivergence, pc, warp, lane, 1, || {
                format!("barrier {id} is used with different thread counts at a time")
            });
        }
        id
    }

    fn release(&mut self, warps: &mut [Warp<'_>]) -> bool {
        let live: u32 = warps.iter().map(|w| w.live.count_ones()).sum();
        let mut any = false;
        for id in 0..16u8 {
            let barrier = self.barriers[usize::from(id)];
            if !barrier.waiting || barrier.arrived < barrier.expected.unwrap_or(live) {
                continue;
            }
            self.barriers[usize::from(id)] = Barrier::default();
            let everyone = barrier.votes == barrier.arrived;
            for warp in warps.iter_mut() {
                if warp.release(id, barrier.votes, everyone, barrier.votes > 0) {
                    let clock = &mut self.shadow.clocks[warp.index as usize];
                    for (own, joined) in clock.iter_mut().zip(&barrier.clock) {
                        *own = (*own).max(*joined);
                    }
                }
            }
            self.shadow.epoch += u32::from(barrier.expected.is_none());
            any = true;
        }
        any
    }

    fn deadlock(&mut self, warps: &[Warp<'_>]) {
        for warp in warps {
            for fragment in &warp.fragments {
                let lane = fragment.mask.trailing_zeros();
                let arrived: Vec<String> = (0..16)
                    .filter(|&id| self.barriers[id].waiting)
                    .map(|id| {
                        let b = self.barriers[id];
                        let all = self.launch.block_threads();
                        format!("barrier {id}: {} of {} threads", b.arrived, b.expected.unwrap_or(all))
                    })
                    .collect();
                self.report(
                    FindingKind::Deadlock,
                    fragment.pc.saturating_sub(1),
                    warp.index,
                    lane,
                    fragment.mask.count_ones(),
                    || format!("waits for ever ({})", arrived.join("; ")),
                );
            }
        }
    }

    /// Records a finding; `count` occurrences, the first at `lane`.
    pub fn report(
        &mut self,
        kind: FindingKind,
        pc: u32,
        warp: u32,
        lane: u32,
        count: u32,
        message: impl FnOnce() -> String,
    ) {
        let launch = self.launch;
        let (module, kernel) = (launch.module, launch.kernel);
        let index = self.index;
        self.output
            .findings
            .entry((kind, pc))
            .or_insert_with(|| {
                let instruction = &kernel.code[pc as usize];
                let location = instruction.location;
                let name = |file: u32| module.files.get(&file).cloned().unwrap_or_default();
                Finding {
                    kind,
                    file: name(location.file),
                    line: location.line,
                    inlined_at: location.inlined_at.map(|(file, line)| format!("{}:{line}", name(file))),
                    ptx_line: instruction.line,
                    kernel: kernel.name.clone(),
                    block: index,
                    thread: launch.thread(warp * LANES as u32 + lane),
                    message: message(),
                    count: 0,
                }
            })
            .count += u64::from(count);
    }
}
