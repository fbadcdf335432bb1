//! Operations that exchange values between the lanes of a warp: `shfl`, `vote`, `match`, `redux`; and atomics, whose
//! lanes take turns in a fixed order.

use crate::access::{Place, read_bytes, read_global, write_bytes, write_global};
use crate::block::Block;
use crate::execute::float;
use crate::execute::integer;
use crate::instruction::{Address, AtomicOp, FloatMode, FloatOp, IntOp, Op, Reg, ShuffleMode, Vote};
use crate::registers::{LANES, Lanes32, Lanes64};
use crate::types::{Space, Type};
use crate::warp::{Warp, lanes};

impl Warp<'_> {
    /// Executes an operation between the lanes of `mask`, which have converged.
    pub(crate) fn exchange(&mut self, op: &Op, mask: u32, members: u32) {
        let r = &mut self.registers;
        match *op {
            Op::Shuffle { mode, d, p, a, b, c, .. } => {
                let (value, inside) = shuffle(mode, r.word(a), r.word(b), r.word(c));
                r.set_word(d, mask, &value);
                if let Some(p) = p {
                    r.set_predicate(p, mask, inside);
                }
            }
            Op::Vote { vote, d, p, a, .. } => {
                let voters = mask & members;
                let yes = r.predicate(a) & voters;
                let all = |holds: bool| if holds { u32::MAX } else { 0 };
                match vote {
                    Vote::Ballot => r.set_word(d, mask, &[yes; LANES]),
                    Vote::All => r.set_predicate(p, mask, all(yes == voters)),
                    Vote::Any => r.set_predicate(p, mask, all(yes != 0)),
                    Vote::Uniform => r.set_predicate(p, mask, all(yes == 0 || yes == voters)),
                }
            }
            Op::Match { all, long, d, p, a, .. } => {
                let values: Lanes64 = if long { *r.long(a) } else { r.word(a).map(u64::from) };
                let voters = mask & members;
                let equal = |lane: usize| {
                    lanes(voters).filter(|&other| values[other] == values[lane]).fold(0, |m, l| m | 1 << l)
                };
                let mut result: Lanes32 = [0; LANES];
                for lane in lanes(mask) {
                    let peers = equal(lane);
                    result[lane] = if !all || peers == voters { peers } else { 0 };
                }
                r.set_word(d, mask, &result);
                if let Some(p) = p {
                    let agreed = lanes(mask).all(|lane| equal(lane) == voters);
                    r.set_predicate(p, mask, if agreed { u32::MAX } else { 0 });
                }
            }
            Op::Redux { op, ty, d, a, .. } => {
                let values = *r.word(a);
                let mut voters = lanes(mask & members);
                let first = voters.next().map_or(0, |lane| values[lane]);
                let total = voters.fold(first, |sum, lane| combine(op, ty, sum, values[lane]));
                r.set_word(d, mask, &[total; LANES]);
            }
            ref op => unreachable!("{op:?} is not an exchange"),
        }
    }

    pub(crate) fn atomic(
        &mut self,
        block: &mut Block<'_, '_>,
        pc: u32,
        (op, ty, space): (AtomicOp, Type, Space),
        d: Reg,
        address: Address,
        [b, c]: [Reg; 2],
        mask: u32,
    ) {
        let addresses = self.addresses(address);
        let bytes = ty.bytes();
        block.traffic(space, &addresses, bytes, mask);
        let mut old: Lanes64 = [0; LANES];
        for lane in lanes(mask) {
            let read = |reg: Reg| {
                if ty.is_long() {
                    self.registers.long(reg)[lane]
                } else {
                    self.registers.word(reg)[lane].into()
                }
            };
            let (b, c) = (read(b), read(c));
            let join = |w: [u32; 4]| u64::from(w[1]) << 32 | u64::from(w[0]);
            let split = |v: u64| [v as u32, (v >> 32) as u32, 0, 0];
            match self.place(block, pc, lane, space, addresses[lane], bytes) {
                Some(Place::Global(allocation, offset)) => {
                    block.atomic_global(self, pc, lane, (addresses[lane], allocation, offset), bytes);
                    old[lane] = join(read_global(allocation, offset, bytes));
                    write_global(allocation, offset, bytes, split(updated(op, ty, old[lane], b, c)));
                }
                Some(Place::Shared(at)) => {
                    block.atomic_shared(self, pc, lane, at, bytes);
                    old[lane] = join(read_bytes(&block.shared, at, bytes));
                    write_bytes(&mut block.shared, at, bytes, split(updated(op, ty, old[lane], b, c)));
                }
                Some(Place::Local(at)) => {
                    old[lane] = join(read_bytes(&self.local, at, bytes));
                    write_bytes(&mut self.local, at, bytes, split(updated(op, ty, old[lane], b, c)));
                }
                None => {}
            }
        }
        if ty.is_long() {
            self.registers.set_long(d, mask, &old);
        } else {
            self.registers.set_word(d, mask, &old.map(|v| v as u32));
        }
    }
}

// PTX ISA §9.7.9.6: c holds the segment mask in bits 8..13 and the clamp in bits 0..5.
pub(crate) fn shuffle(mode: ShuffleMode, a: &Lanes32, b: &Lanes32, c: &Lanes32) -> (Lanes32, u32) {
    let (mut out, mut inside) = ([0; LANES], 0u32);
    for lane in 0..LANES {
        let (segment, clamp) = (c[lane] >> 8 & 0x1f, c[lane] & 0x1f);
        let b = b[lane] & 0x1f;
        let lane32 = lane as u32;
        let most = (lane32 & segment) | (clamp & !segment);
        let least = lane32 & segment;
        let (source, ok) = match mode {
            // The bounds are compared as signed numbers: a lane below 0 is outside.
            ShuffleMode::Up => {
                let j = lane as i32 - b as i32;
                (j as u32, j >= most as i32)
            }
            ShuffleMode::Down => (lane32 + b, lane32 + b <= most),
            ShuffleMode::Butterfly => (lane32 ^ b, lane32 ^ b <= most),
            ShuffleMode::Index => {
                let j = least | (b & !segment);
                (j, j <= most)
            }
        };
        out[lane] = a[if ok { source as usize } else { lane }];
        inside |= u32::from(ok) << lane;
    }
    (out, inside)
}

fn combine(op: IntOp, ty: Type, a: u32, b: u32) -> u32 {
    integer::word(op, ty, &[a; LANES], &[b; LANES], &[0; LANES], &[0; LANES])[0]
}

fn updated(op: AtomicOp, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let keep = |v: u64| if ty.is_long() { v } else { v & 0xffff_ffff };
    match (op, ty) {
        (AtomicOp::Add, Type::F32) => {
            // Global f32 atomics flush nothing unless asked to; `atom.shared.add.f32` neither.
            let sum = float::single(
                FloatOp::Add,
                FloatMode::PLAIN,
                &[old as u32; LANES],
                &[b as u32; LANES],
                &[0; LANES],
            );
            sum[0].into()
        }
        (AtomicOp::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (AtomicOp::Add, Type::F16x2 | Type::Bf16x2) => {
            let sum = float::half_precision(
                FloatOp::Add,
                ty,
                FloatMode::PLAIN,
                &[old as u32; LANES],
                &[b as u32; LANES],
                &[0; LANES],
            );
            sum[0].into()
        }
        (AtomicOp::Add, _) => keep(old.wrapping_add(b)),
        (AtomicOp::And, _) => old & b,
        (AtomicOp::Or, _) => old | b,
        (AtomicOp::Xor, _) => old ^ b,
        (AtomicOp::Exch, _) => b,
        (AtomicOp::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (AtomicOp::Min, Type::S32) => ((old as i32).min(b as i32) as u32).into(),
        (AtomicOp::Max, Type::S32) => ((old as i32).max(b as i32) as u32).into(),
        (AtomicOp::Min, Type::S64) => (old as i64).min(b as i64) as u64,
        (AtomicOp::Max, Type::S64) => (old as i64).max(b as i64) as u64,
        (AtomicOp::Min, _) => old.min(b),
        (AtomicOp::Max, _) => old.max(b),
        (AtomicOp::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (AtomicOp::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}
