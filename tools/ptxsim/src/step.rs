//! Execution of one instruction by the lanes of a mask.

use crate::block::Block;
use crate::execute::{convert, float, integer, tensor};
use crate::findings::FindingKind;
use crate::instruction::{Group, Instruction, IntOp, Logic, Op, Reg};
use crate::memory::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::registers::{LANES, Lanes32, Lanes64};
use crate::types::{Rounding, Space, Type};
use crate::warp::{Next, Warp, is_aligned, lanes};

impl Warp<'_> {
    pub(crate) fn execute(
        &mut self,
        block: &mut Block<'_, '_>,
        instruction: &Instruction,
        pc: u32,
        mask: u32,
        forced: bool,
    ) -> Next {
        let r = &mut self.registers;
        match instruction.op {
            Op::Int { op, ty, d, a, b, c, e } if !ty.is_long() => {
                let value = integer::word(op, ty, r.word(a), r.word(b), r.word(c), r.word(e));
                r.set_word(d, mask, &value);
            }
            Op::Int {
                op: op @ (IntOp::Popc | IntOp::Clz | IntOp::Bfind | IntOp::BfindShift),
                ty,
                d,
                a,
                ..
            } => {
                let value = integer::long_to_word(op, ty, r.long(a));
                r.set_word(d, mask, &value);
            }
            Op::Int { op, ty, d, a, b, c, e } => {
                self.long_integer(op, ty, d, [a, b, c, e], mask);
            }
            Op::Float { op, ty: Type::F32, mode, d, a, b, c } => {
                let mut value = float::single(op, mode, r.word(a), r.word(b), r.word(c));
                if mode.approximate {
                    let approximations = block.launch.options.approximations;
                    float::approximate(op, mode, r.word(a), &mut value, approximations);
                }
                r.set_word(d, mask, &value);
            }
            Op::Float { op, ty: Type::F64, d, a, b, c, .. } => {
                let value = float::double(op, r.long(a), r.long(b), r.long(c));
                r.set_long(d, mask, &value);
            }
            Op::Float { op, ty, mode, d, a, b, c } => {
                let value = float::half_precision(op, ty, mode, r.word(a), r.word(b), r.word(c));
                r.set_word(d, mask, &value);
            }
            Op::Move { long: false, d, a } => {
                let value = *r.word(a);
                r.set_word(d, mask, &value);
            }
            Op::Move { long: true, d, a } => {
                let value = *r.long(a);
                r.set_long(d, mask, &value);
            }
            Op::Load { access, d, address } => return self.load(block, pc, access, d, address, mask),
            Op::Store { access, a, address } => return self.store(block, pc, access, a, address, mask),
            Op::MulWide { ty, d, a, b, c } => {
                if ty.bits() == 32 {
                    let mut value = integer::wide32(ty.is_signed(), r.word(a), r.word(b));
                    if let Some(c) = c {
                        let c = r.long(c);
                        for i in 0..LANES {
                            value[i] = value[i].wrapping_add(c[i]);
                        }
                    }
                    r.set_long(d, mask, &value);
                } else {
                    let mut value = integer::wide16(ty.is_signed(), r.word(a), r.word(b));
                    if let Some(c) = c {
                        let c = r.word(c);
                        for i in 0..LANES {
                            value[i] = value[i].wrapping_add(c[i]);
                        }
                    }
                    r.set_word(d, mask, &value);
                }
            }
            Op::Convert { conversion, d, a, b } => {
                let value = self.convert(conversion, a, b);
                if conversion.to.is_long() {
                    self.registers.set_long(d, mask, &value);
                } else {
                    self.registers.set_word(d, mask, &value.map(|v| v as u32));
                }
            }
            Op::Compare { comparison, ty, ftz, combine, d, e, a, b } => {
                let bits = self.compare(comparison, ty, ftz, a, b);
                let r = &mut self.registers;
                let (mut yes, mut no) = (bits, !bits);
                if let Some((logic, p)) = combine {
                    let p = r.predicate(p);
                    (yes, no) = (combined(logic, yes, p), combined(logic, no, p));
                }
                r.set_predicate(d, mask, yes);
                r.set_predicate(e, mask, no);
            }
            Op::Set { comparison, ty, ftz, combine, float, d, a, b } => {
                let mut bits = self.compare(comparison, ty, ftz, a, b);
                let r = &mut self.registers;
                if let Some((logic, p)) = combine {
                    bits = combined(logic, bits, r.predicate(p));
                }
                let one = if float { 1f32.to_bits() } else { u32::MAX };
                let value = std::array::from_fn(|i| if bits >> i & 1 != 0 { one } else { 0 });
                r.set_word(d, mask, &value);
            }
            Op::Select { long: false, d, a, b, p } => {
                let p = r.predicate(p);
                let (a, b) = (r.word(a), r.word(b));
                let value: Lanes32 = std::array::from_fn(|i| if p >> i & 1 != 0 { a[i] } else { b[i] });
                r.set_word(d, mask, &value);
            }
            Op::Select { long: true, d, a, b, p } => {
                let p = r.predicate(p);
                let (a, b) = (r.long(a), r.long(b));
                let value: Lanes64 = std::array::from_fn(|i| if p >> i & 1 != 0 { a[i] } else { b[i] });
                r.set_long(d, mask, &value);
            }
            Op::SelectSign { long, float, d, a, b, c } => {
                let c = *r.word(c);
                let p = |i: usize| if float { f32::from_bits(c[i]) >= 0.0 } else { c[i] as i32 >= 0 };
                if long {
                    let (a, b) = (r.long(a), r.long(b));
                    let value: Lanes64 = std::array::from_fn(|i| if p(i) { a[i] } else { b[i] });
                    r.set_long(d, mask, &value);
                } else {
                    let (a, b) = (r.word(a), r.word(b));
                    let value: Lanes32 = std::array::from_fn(|i| if p(i) { a[i] } else { b[i] });
                    r.set_word(d, mask, &value);
                }
            }
            Op::TestFloat { test, ty, d, a } => {
                let mut bits = 0;
                for i in 0..LANES {
                    let (x, subnormal) = if ty == Type::F32 {
                        let x = f32::from_bits(r.word(a)[i]);
                        (f64::from(x), x.is_subnormal())
                    } else {
                        let x = f64::from_bits(r.long(a)[i]);
                        (x, x.is_subnormal())
                    };
                    bits |= u32::from(float::test(test, x, subnormal)) << i;
                }
                r.set_predicate(d, mask, bits);
            }
            Op::MovePredicate { d, a } => {
                let value = r.predicate(a);
                r.set_predicate(d, mask, value);
            }
            Op::PredicateLogic { logic, d, a, b } => {
                let value = combined(logic, r.predicate(a), r.predicate(b));
                r.set_predicate(d, mask, value);
            }
            Op::Pack { long, d, parts, part_bits } => self.pack(long, d, parts, part_bits, mask),
            Op::Unpack { long, parts, a, part_bits } => self.unpack(long, parts, a, part_bits, mask),
            Op::ConvertAddress { space, to_generic, long, d, a } => {
                self.convert_address(space, to_generic, long, d, a, mask);
            }
            Op::IsSpace { space, d, a } => {
                let mut bits = 0;
                for i in lanes(mask) {
                    bits |= u32::from(space_of(r.long(a)[i]) == space) << i;
                }
                r.set_predicate(d, mask, bits);
            }
            Op::Atomic { op, ty, space, d, address, b, c } => {
                self.atomic(block, pc, (op, ty, space), d, address, [b, c], mask);
            }
            Op::ActiveMask { d } => r.set_word(d, mask, &[mask; LANES]),
            Op::Clock { long, d } => {
                let now = block.clock();
                if long {
                    r.set_long(d, mask, &[now; LANES]);
                } else {
                    r.set_word(d, mask, &[now as u32; LANES]);
                }
            }
            Op::CopyAsync { bytes, source, target, source_bytes, ignore } => {
                self.copy_async(block, pc, bytes, source, target, (source_bytes, ignore), mask);
            }
            Op::CopyCommit => self.copies.commit(mask),
            Op::CopyWait { pending } => self.copy_wait(block, pc, pending, mask),
            Op::Fence | Op::Nothing => {}
            Op::Branch { target } => return Next::Jump { target, taken: mask },
            Op::BranchIndex { index, ref targets } => {
                let index = *r.word(index);
                let last = targets.len() - 1;
                return Next::Scatter(Box::new(std::array::from_fn(|i| {
                    targets[(index[i] as usize).min(last)]
                })));
            }
            Op::Exit => return Next::Exit(mask),
            Op::Trap => {
                block.report(
                    FindingKind::Trap,
                    pc,
                    self.index,
                    mask.trailing_zeros(),
                    mask.count_ones(),
                    || "the kernel stopped itself".into(),
                );
                block.aborted = true;
                return Next::Exit(mask);
            }
            _ => return self.together(block, instruction, pc, mask, forced),
        }
        Next::Advance
    }

    // Operations that need several lanes at once.
    fn together(
        &mut self,
        block: &mut Block<'_, '_>,
        instruction: &Instruction,
        pc: u32,
        mask: u32,
        forced: bool,
    ) -> Next {
        let r = &self.registers;
        let members = match instruction.op {
            Op::Shuffle { members, .. }
            | Op::Vote { members, .. }
            | Op::Match { members, .. }
            | Op::Redux { members, .. }
            | Op::WarpBarrier { members } => r.word(members)[mask.trailing_zeros() as usize],
            // All threads of the warp must execute these, so lanes that have exited are missing too.
            ref op if is_aligned(op) => block.lanes_of(self.index),
            ref op => unreachable!("{op:?} is not an operation between lanes"),
        };
        if !self.converged(block, pc, mask, members, forced) {
            return Next::Gather { mask };
        }
        let r = &mut self.registers;
        match instruction.op {
            Op::Mma { shape, d, a, b, c } => {
                let read = |g: Group| -> [Lanes32; 4] { g.regs.map(|reg| *r.word(reg)) };
                let value = tensor::multiply(shape, &read(a), &read(b), &read(c));
                for i in 0..usize::from(d.count) {
                    r.set_word(d.regs[i], mask, &value[i]);
                }
            }
            Op::LoadMatrix { transposed, d, address } => {
                self.load_matrix(block, pc, transposed, d, address, mask);
            }
            Op::StoreMatrix { transposed, a, address } => {
                self.store_matrix(block, pc, transposed, a, address, mask);
            }
            Op::MoveMatrix { d, a } => {
                let value = tensor::distribute(&tensor::collect(r.word(a), false), true);
                r.set_word(d, mask, &value);
            }
            Op::Barrier { id, threads, reduction } => {
                let lane = mask.trailing_zeros() as usize;
                let id = r.word(id)[lane];
                let threads = threads.map(|t| r.word(t)[lane]);
                let votes = reduction.map_or(0, |(_, p)| r.predicate(p) & mask);
                let id = block.arrive(pc, self.index, id, threads, mask, votes);
                return Next::Park { id, mask, reduction: reduction.map(|(kind, _)| kind) };
            }
            Op::BarrierArrive { id, threads } => {
                let lane = mask.trailing_zeros() as usize;
                let (id, threads) = (r.word(id)[lane], r.word(threads)[lane]);
                block.arrive(pc, self.index, id, Some(threads), mask, 0);
            }
            Op::WarpBarrier { .. } => self.epoch += 1,
            ref op => self.exchange(op, mask, members),
        }
        Next::Advance
    }

    fn long_integer(&mut self, op: IntOp, ty: Type, d: Reg, [a, b, c, e]: [Reg; 4], mask: u32) {
        let r = &mut self.registers;
        let zero = Reg::NONE;
        // Which operands are words depends on the operation; the others are not read.
        let (long_b, long_c) = match op {
            IntOp::Shl | IntOp::Shr | IntOp::Bfe => (zero, zero),
            IntOp::Bfi => (b, zero),
            _ => (b, c),
        };
        let word = |reg: Reg, wanted: bool| if wanted { reg } else { zero };
        let fields = matches!(op, IntOp::Bfe | IntOp::Bfi);
        let words = integer::WordOperands {
            b: r.word(word(b, matches!(op, IntOp::Shl | IntOp::Shr | IntOp::Bfe))),
            c: r.word(word(c, fields)),
            e: r.word(word(e, op == IntOp::Bfi)),
        };
        let value = integer::long(op, ty, r.long(a), r.long(long_b), r.long(long_c), &words);
        r.set_long(d, mask, &value);
    }

    fn convert(&self, conversion: crate::instruction::Conversion, a: Reg, b: Reg) -> Lanes64 {
        let r = &self.registers;
        if conversion.from_long {
            let a = r.long(a);
            return match (conversion.from, conversion.to) {
                (Type::U64 | Type::S64, Type::U32 | Type::S32) if !conversion.sat => {
                    a.map(|v| v & 0xffff_ffff)
                }
                _ => std::array::from_fn(|i| convert::convert(conversion, a[i], 0)),
            };
        }
        match (conversion.from, conversion.to) {
            // What kernels do most: address arithmetic, and bf16 in and out of f32.
            (Type::F32, Type::F32) if conversion.sat && !conversion.integral && !conversion.ftz => {
                r.word(a).map(|v| float::saturate(f32::from_bits(v)).to_bits().into())
            }
            (Type::F32, Type::Bf16x2) if conversion.is_plain() => {
                let (a, b) = (r.word(a), r.word(b));
                std::array::from_fn(|i| convert::bf16_bits(a[i]) << 16 | convert::bf16_bits(b[i]))
            }
            (Type::F32, Type::Bf16) if conversion.is_plain() => r.word(a).map(convert::bf16_bits),
            (Type::S32, Type::F32) if conversion.rounding == Rounding::Nearest => {
                r.word(a).map(|v| (v as i32 as f32).to_bits().into())
            }
            (Type::U32, Type::F32) if conversion.rounding == Rounding::Nearest => {
                r.word(a).map(|v| (v as f32).to_bits().into())
            }
            (Type::S32, Type::S64 | Type::U64) if !conversion.sat => r.word(a).map(|v| v as i32 as u64),
            (Type::U32, Type::S64 | Type::U64) if !conversion.sat => r.word(a).map(u64::from),
            _ => {
                let (a, b) = (r.word(a), r.word(b));
                std::array::from_fn(|i| convert::convert(conversion, a[i].into(), b[i].into()))
            }
        }
    }

    fn compare(
        &self,
        comparison: crate::instruction::Comparison,
        ty: Type,
        ftz: bool,
        a: Reg,
        b: Reg,
    ) -> u32 {
        let r = &self.registers;
        let mut bits = 0;
        if ty == Type::S32 {
            let (a, b) = (r.word(a), r.word(b));
            for i in 0..LANES {
                let holds = convert::compare_integers(comparison, (a[i] as i32).cmp(&(b[i] as i32)));
                bits |= u32::from(holds) << i;
            }
        } else if ty == Type::F32 && !ftz {
            let (a, b) = (r.word(a), r.word(b));
            let (mut less, mut equal, mut greater) = (0u32, 0u32, 0u32);
            for i in 0..LANES {
                let (x, y) = (f32::from_bits(a[i]), f32::from_bits(b[i]));
                less |= u32::from(x < y) << i;
                equal |= u32::from(x == y) << i;
                greater |= u32::from(x > y) << i;
            }
            bits = convert::relation(comparison, less, equal, greater);
        } else if ty.is_float() {
            for i in 0..LANES {
                let (x, y) = if ty.is_long() {
                    (r.long(a)[i], r.long(b)[i])
                } else {
                    (r.word(a)[i].into(), r.word(b)[i].into())
                };
                let (x, y) = (convert::float_value(ty, x, ftz), convert::float_value(ty, y, ftz));
                bits |= u32::from(convert::compare_floats(comparison, x, y)) << i;
            }
        } else {
            let shift = 64 - ty.bits();
            for i in 0..LANES {
                let (x, y) = if ty.is_long() {
                    (r.long(a)[i], r.long(b)[i])
                } else {
                    (u64::from(r.word(a)[i]) << shift, u64::from(r.word(b)[i]) << shift)
                };
                let order = if ty.is_signed() { (x as i64).cmp(&(y as i64)) } else { x.cmp(&y) };
                bits |= u32::from(convert::compare_integers(comparison, order)) << i;
            }
        }
        bits
    }

    fn pack(&mut self, long: bool, d: Reg, parts: Group, part_bits: u8, mask: u32) {
        let r = &mut self.registers;
        let keep = (1u64 << part_bits) - 1;
        let mut value = [0u64; LANES];
        for (place, &part) in parts.regs[..parts.count.into()].iter().enumerate() {
            let part = r.word(part);
            for i in 0..LANES {
                value[i] |= (u64::from(part[i]) & keep) << (place * usize::from(part_bits));
            }
        }
        if long {
            r.set_long(d, mask, &value);
        } else {
            r.set_word(d, mask, &value.map(|v| v as u32));
        }
    }

    fn unpack(&mut self, long: bool, parts: Group, a: Reg, part_bits: u8, mask: u32) {
        let r = &mut self.registers;
        let keep = (1u64 << part_bits) - 1;
        let value = if long { *r.long(a) } else { r.word(a).map(u64::from) };
        for (place, &part) in parts.regs[..parts.count.into()].iter().enumerate() {
            let shift = place * usize::from(part_bits);
            r.set_word(part, mask, &value.map(|v| (v >> shift & keep) as u32));
        }
    }

    fn convert_address(&mut self, space: Space, to_generic: bool, long: bool, d: Reg, a: Reg, mask: u32) {
        let r = &mut self.registers;
        let window = match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            // Device memory and constants have the same address in their space as generically.
            _ => 0,
        };
        let value = if long { *r.long(a) } else { r.word(a).map(u64::from) };
        let value = value.map(|v| if to_generic { v.wrapping_add(window) } else { v.wrapping_sub(window) });
        if long {
            r.set_long(d, mask, &value);
        } else {
            r.set_word(d, mask, &value.map(|v| v as u32));
        }
    }
}

/// The space that a generic address points into.
pub(crate) fn space_of(address: u64) -> Space {
    if (SHARED_WINDOW..SHARED_WINDOW + WINDOW_BYTES).contains(&address) {
        Space::Shared
    } else if (LOCAL_WINDOW..LOCAL_WINDOW + WINDOW_BYTES).contains(&address) {
        Space::Local
    } else {
        Space::Global
    }
}

fn combined(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}
