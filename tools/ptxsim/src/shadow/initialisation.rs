//! Which bytes of each register hold a value that was once written.
//!
//! Loading an undefined byte is not a fault: vector loads fetch padding that is thrown away later. So definedness is
//! carried through registers byte by byte, and is asked for where it matters: addresses, guards, stores to device
//! memory. Operations that move bytes are followed exactly; any other result is undefined when an operand is.

use crate::execute::tensor;
use crate::instruction::{Access, Group, Instruction, IntOp, MmaShape, Op, Pred, PrmtMode, Reg, Slot};
use crate::registers::{LANES, Lanes32, Registers};
use crate::types::Type;
use crate::warp::lanes;

/// Bytes of a register in one lane, lowest bit for the lowest byte.
pub type Bytes = u8;

#[derive(Debug, Clone)]
struct Entry {
    // Lanes in which every byte is defined; `bytes` is only right for the others.
    full: u32,
    bytes: [Bytes; LANES],
    // Where an undefined byte came from: pc + 1 of a load, 0 for a register never written.
    origin: u32,
}

/// Definedness of the registers of one warp.
#[derive(Debug)]
pub struct RegisterShadow {
    words: Vec<Entry>,
    longs: Vec<Entry>,
    predicates: Vec<(u32, u32)>,
}

/// An undefined operand where a defined one is needed.
#[derive(Debug, Clone, Copy)]
pub struct Undefined {
    /// Lanes.
    pub lanes: u32,
    /// What the value is used for.
    pub role: &'static str,
    /// pc + 1 of the load it came from, 0 if it was never written.
    pub origin: u32,
}

impl RegisterShadow {
    /// Nothing is defined but the specials, which are not among the checked operands.
    pub fn new(sizes: [u32; 3]) -> RegisterShadow {
        let empty = Entry { full: 0, bytes: [0; LANES], origin: 0 };
        RegisterShadow {
            words: vec![empty.clone(); sizes[0] as usize],
            longs: vec![empty; sizes[1] as usize],
            predicates: vec![(0, 0); sizes[2] as usize],
        }
    }

    fn full(&self, slot: Slot) -> u32 {
        match slot {
            Slot::Word(i) => self.words[i as usize].full,
            Slot::Long(i) => self.longs[i as usize].full,
            Slot::Predicate(i) => self.predicates[i as usize].0,
        }
    }

    fn origin(&self, slot: Slot) -> u32 {
        match slot {
            Slot::Word(i) => self.words[i as usize].origin,
            Slot::Long(i) => self.longs[i as usize].origin,
            Slot::Predicate(i) => self.predicates[i as usize].1,
        }
    }

    fn set_full(&mut self, slot: Slot, mask: u32) {
        match slot {
            Slot::Word(i) => self.words[i as usize].full |= mask,
            Slot::Long(i) => self.longs[i as usize].full |= mask,
            Slot::Predicate(i) => self.predicates[i as usize].0 |= mask,
        }
    }

    fn set_undefined(&mut self, slot: Slot, mask: u32, origin: u32) {
        match slot {
            Slot::Word(i) => clear(&mut self.words[i as usize], mask, origin),
            Slot::Long(i) => clear(&mut self.longs[i as usize], mask, origin),
            Slot::Predicate(i) => {
                let p = &mut self.predicates[i as usize];
                *p = (p.0 & !mask, origin);
            }
        }
    }

    /// Defined bytes of a word or long operand; a constant is defined.
    pub fn bytes(&self, reg: Reg, long: bool, lane: usize) -> Bytes {
        let all = if long { 0xff } else { 0xf };
        if reg.as_constant().is_some() {
            return all;
        }
        let entry = if long { self.longs.get(reg.index()) } else { self.words.get(reg.index()) };
        match entry {
            Some(entry) if entry.full >> lane & 1 == 0 => entry.bytes[lane],
            _ => all,
        }
    }

    fn set_bytes(&mut self, reg: Reg, long: bool, lane: usize, bytes: Bytes, origin: u32) {
        if reg.as_constant().is_some() {
            return;
        }
        let (all, entry) =
            if long { (0xff, &mut self.longs[reg.index()]) } else { (0xf, &mut self.words[reg.index()]) };
        if bytes & all == all {
            entry.full |= 1 << lane;
        } else {
            entry.full &= !(1 << lane);
            entry.bytes[lane] = bytes;
            entry.origin = origin;
        }
    }

    fn undefined(&mut self, slot: Slot, mask: u32, role: &'static str) -> Option<Undefined> {
        let lanes = mask & !self.full(slot);
        // Once reported it counts as defined, so that one fault does not show up again at every later use.
        self.set_full(slot, lanes);
        (lanes != 0).then(|| Undefined { lanes, role, origin: self.origin(slot) })
    }

    /// The guard of an instruction, needed by all lanes that come to it.
    pub fn guard(&mut self, guard: Pred, here: u32) -> Option<Undefined> {
        self.undefined(Slot::Predicate(guard.index), here, "decides a branch")
    }

    /// Follows one instruction, before it executes. Loads set their targets later, through [`Self::loaded`].
    pub fn follow(
        &mut self,
        instruction: &Instruction,
        registers: &Registers<'_>,
        mask: u32,
        report: &mut dyn FnMut(Undefined),
    ) {
        let loads = matches!(instruction.op, Op::Load { .. } | Op::LoadMatrix { .. });
        if instruction.reads.iter().all(|&slot| self.full(slot) & mask == mask) {
            if !loads {
                for &slot in &instruction.writes {
                    self.set_full(slot, mask);
                }
            }
            return;
        }
        // The decoder reads addresses before values.
        let (needed, role): (usize, _) = match instruction.op {
            Op::Load { .. } | Op::Store { .. } | Op::LoadMatrix { .. } | Op::StoreMatrix { .. } => {
                (1, "forms an address")
            }
            Op::CopyAsync { .. } => (usize::MAX, "forms an address or size"),
            Op::Atomic { .. } => (usize::MAX, "goes into an atomic operation"),
            Op::BranchIndex { .. } => (usize::MAX, "decides a branch"),
            Op::Barrier { .. } | Op::BarrierArrive { .. } | Op::WarpBarrier { .. } => {
                (usize::MAX, "goes into a barrier")
            }
            _ => (0, ""),
        };
        for &slot in instruction.reads.iter().take(needed) {
            // An address in a constant has no slot, and then the first slot is a value.
            if needed == 1 && !is_base(&instruction.op, slot) {
                continue;
            }
            if let Some(found) = self.undefined(slot, mask, role) {
                report(found);
            }
        }
        if needed > 0 {
            if !loads {
                for &slot in &instruction.writes {
                    self.set_full(slot, mask);
                }
            }
            return;
        }
        self.propagate(instruction, registers, mask);
    }

    fn propagate(&mut self, instruction: &Instruction, registers: &Registers<'_>, mask: u32) {
        let reads = &instruction.reads;
        let origin =
            reads.iter().find(|&&slot| self.full(slot) & mask != mask).map_or(0, |&slot| self.origin(slot));
        match instruction.op {
            Op::Move { long, d, a } => self.map(d, long, mask, origin, |s, lane| s.bytes(a, long, lane)),
            Op::Select { long, d, a, b, p } => {
                let (known, value) = (self.predicates[p.index as usize].0, registers.predicate(p));
                self.map(d, long, mask, origin, |s, lane| {
                    if known >> lane & 1 == 0 && p.index as usize + 1 < s.predicates.len() {
                        0
                    } else {
                        s.bytes(if value >> lane & 1 != 0 { a } else { b }, long, lane)
                    }
                });
            }
            Op::Pack { long, d, parts, part_bits } => {
                let part = u32::from(part_bits / 8);
                self.map(d, long, mask, origin, |s, lane| {
                    (0..usize::from(parts.count)).fold(0, |bytes, i| {
                        let one = s.bytes(parts.regs[i], false, lane) & ((1 << part) - 1);
                        bytes | one << (i as u32 * part)
                    })
                });
            }
            Op::Unpack { long, parts, a, part_bits } => {
                let part = u32::from(part_bits / 8);
                let source: [Bytes; LANES] = std::array::from_fn(|lane| self.bytes(a, long, lane));
                for (i, &reg) in parts.regs[..parts.count.into()].iter().enumerate() {
                    self.map(reg, false, mask, origin, |_, lane| {
                        let bytes = source[lane] >> (i as u32 * part) & ((1 << part) - 1);
                        // The upper half of a 16-bit register is zero.
                        if part == 2 { bytes | 0xc } else { bytes }
                    });
                }
            }
            Op::Convert { conversion, d, a, b } if conversion.from.bytes() < 4 || conversion.from_long => {
                let needed = ((1u32 << conversion.from.bytes()) - 1) as Bytes;
                let long = conversion.to.is_long();
                self.map(d, long, mask, origin, |s, lane| {
                    let ok = s.bytes(a, conversion.from_long, lane) & needed == needed
                        && (b == Reg::NONE || s.bytes(b, false, lane) == 0xf);
                    if ok { 0xff } else { 0 }
                });
            }
            Op::Convert { conversion, d, a, b } if matches!(conversion.to, Type::F16x2 | Type::Bf16x2) => {
                self.map(d, false, mask, origin, |s, lane| {
                    let half = |reg: Reg, bits: u8| if s.bytes(reg, false, lane) == 0xf { bits } else { 0 };
                    half(a, 0xc) | half(b, 0x3)
                });
            }
            Op::Int { op, ty, d, a, b, c, .. } if !ty.is_long() => {
                let value = registers.word(b);
                let selector = registers.word(c);
                self.map(d, false, mask, origin, |s, lane| {
                    let (x, y, z) =
                        (s.bytes(a, false, lane), s.bytes(b, false, lane), s.bytes(c, false, lane));
                    bytewise(op, ty, [x, y, z], (registers.word(a)[lane], value[lane], selector[lane]))
                });
            }
            Op::Float { ty: Type::F16x2 | Type::Bf16x2, d, a, b, c, .. } => {
                self.map(d, false, mask, origin, |s, lane| {
                    let all = s.bytes(a, false, lane) & s.bytes(b, false, lane) & s.bytes(c, false, lane);
                    let half = |bits: u8| if all & bits == bits { bits } else { 0 };
                    half(0x3) | half(0xc)
                });
            }
            Op::Shuffle { mode, d, p, a, b, c, .. } => {
                let source: Lanes32 = std::array::from_fn(|lane| self.bytes(a, false, lane).into());
                let (bytes, _) =
                    crate::collective::shuffle(mode, &source, registers.word(b), registers.word(c));
                self.map(d, false, mask, origin, |_, lane| bytes[lane] as Bytes);
                if let Some(p) = p {
                    self.set_full(Slot::Predicate(p), mask);
                }
            }
            Op::Mma { shape, d, a, b, c } => self.multiply(shape, [d, a, b, c], mask, origin),
            Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. } => {
                for &slot in &instruction.writes {
                    self.set_undefined(slot, mask, origin);
                }
            }
            _ => {
                let good = reads.iter().fold(mask, |good, &slot| good & self.full(slot));
                for &slot in &instruction.writes {
                    self.set_full(slot, good);
                    self.set_undefined(slot, mask & !good, origin);
                }
            }
        }
    }

    fn map(&mut self, d: Reg, long: bool, mask: u32, origin: u32, f: impl Fn(&Self, usize) -> Bytes) {
        for lane in lanes(mask) {
            let bytes = f(self, lane);
            self.set_bytes(d, long, lane, bytes, origin);
        }
    }

    // An element of D is defined when its row of A, its column of B and its element of C are.
    fn multiply(&mut self, shape: MmaShape, [d, a, b, c]: [Group; 4], mask: u32, origin: u32) {
        let (mut rows, mut columns) = ([true; 16], [true; 8]);
        for lane in 0..LANES {
            for (i, &reg) in a.regs[..a.count.into()].iter().enumerate() {
                rows[lane / 4 + 8 * (i % 2)] &= self.bytes(reg, false, lane) == 0xf;
            }
            for &reg in &b.regs[..b.count.into()] {
                columns[lane / 4] &= self.bytes(reg, false, lane) == 0xf;
            }
        }
        for (i, (&reg, &add)) in d.regs.iter().zip(&c.regs).take(d.count.into()).enumerate() {
            self.map(reg, false, mask, origin, |s, lane| {
                let element =
                    |row: usize, column: usize| rows[lane / 4 + 8 * row] && columns[2 * (lane % 4) + column];
                let before = s.bytes(add, false, lane);
                if shape.output == Type::F32 {
                    if element(i / 2, i % 2) && before == 0xf { 0xf } else { 0 }
                } else {
                    let half = |column: usize, bits: u8| {
                        if element(i, column) && before & bits == bits { bits } else { 0 }
                    };
                    half(0, 0x3) | half(1, 0xc)
                }
            });
        }
    }

    /// Targets of a load: `bits[lane]` are the defined bytes in memory order.
    pub fn loaded(&mut self, d: Group, access: Access, mask: u32, bits: &[u16; LANES], pc: u32) {
        let width = u32::from(access.width);
        let all = (1u32 << access.bytes()) - 1;
        for (i, &reg) in d.regs[..d.count.into()].iter().enumerate() {
            for lane in lanes(mask) {
                let mut bytes = u32::from(bits[lane]);
                bytes = if bytes == all { 0xff } else { bytes >> (i as u32 * width) & ((1 << width) - 1) };
                // Extension defines the upper bytes, with the sign of the top one.
                if bytes >> (width - 1) & 1 != 0 || !access.signed {
                    bytes |= 0xff & !((1 << width) - 1);
                }
                self.set_bytes(reg, d.long, lane, bytes as Bytes, pc + 1);
            }
        }
    }

    /// One register of `ldmatrix`: `rows[r]` are the defined bytes of row r.
    pub fn matrix_loaded(&mut self, d: Reg, transposed: bool, mask: u32, rows: &[u16], pc: u32) {
        // Definedness of a byte travels like the byte: expand to matrices of whole bytes, and distribute those.
        let expand = |bits: u16| -> [u32; 4] {
            std::array::from_fn(|word| {
                (0..4).fold(0, |w, byte| {
                    w | if bits >> (4 * word + byte) & 1 != 0 { 0xff << (8 * byte) } else { 0 }
                })
            })
        };
        let matrix: [[u32; 4]; 8] = std::array::from_fn(|r| expand(rows[r]));
        let value = tensor::distribute(&matrix, transposed);
        for lane in lanes(mask) {
            let bytes = (0..4).fold(0, |b, i| b | ((value[lane] >> (8 * i) & 1) as u8) << i);
            self.set_bytes(d, false, lane, bytes, pc + 1);
        }
    }

    /// Defined bytes of what a store writes, in memory order, and the origin of an undefined one.
    pub fn stored(&self, a: Group, access: Access, lane: usize) -> (u32, u32) {
        let width = u32::from(access.width);
        let (mut bits, mut origin) = (0, 0);
        for (i, &reg) in a.regs[..a.count.into()].iter().enumerate() {
            let bytes = u32::from(self.bytes(reg, a.long, lane)) & ((1 << width) - 1);
            if bytes != (1 << width) - 1 {
                origin = if a.long { self.longs[reg.index()].origin } else { self.words[reg.index()].origin };
            }
            bits |= bytes << (i as u32 * width);
        }
        (bits, origin)
    }
}

fn clear(entry: &mut Entry, mask: u32, origin: u32) {
    if mask != 0 {
        entry.full &= !mask;
        entry.origin = origin;
        for lane in lanes(mask) {
            entry.bytes[lane] = 0;
        }
    }
}

fn is_base(op: &Op, slot: Slot) -> bool {
    let (Op::Load { address, .. }
    | Op::Store { address, .. }
    | Op::LoadMatrix { address, .. }
    | Op::StoreMatrix { address, .. }) = op
    else {
        return false;
    };
    match slot {
        Slot::Long(i) => address.long && address.base == Reg::variable(i),
        Slot::Word(i) => !address.long && address.base == Reg::variable(i),
        Slot::Predicate(_) => false,
    }
}

// Definedness of a 32-bit (or narrower) integer result, given that of the operands and their values.
fn bytewise(op: IntOp, ty: Type, [x, y, z]: [Bytes; 3], (a, b, c): (u32, u32, u32)) -> Bytes {
    let all = 0xf;
    // A zero byte that is defined decides an AND, an all-ones byte an OR.
    let constant = |defined: Bytes, value: u32, byte: u32| {
        (0..4).fold(0, |m, i| m | u8::from(defined >> i & 1 != 0 && value >> (8 * i) & 0xff == byte) << i)
    };
    let shift_known = y == all && b.is_multiple_of(8) && ty.bits() == 32;
    match op {
        IntOp::And => (x & y) | constant(x, a, 0) | constant(y, b, 0),
        IntOp::Or => (x & y) | constant(x, a, 0xff) | constant(y, b, 0xff),
        IntOp::Xor => x & y,
        IntOp::Not => x,
        IntOp::Lop3(_) => x & y & z,
        IntOp::Shl if shift_known => {
            let bytes = (b / 8).min(4);
            ((u32::from(x) << bytes | ((1 << bytes) - 1)) & 0xf) as Bytes
        }
        IntOp::Shr if shift_known && (!ty.is_signed() || x & 8 != 0) => {
            let bytes = (b / 8).min(4);
            ((u32::from(x) | 0xf0) >> bytes & 0xf) as Bytes
        }
        IntOp::Prmt(PrmtMode::Index) if z == all => {
            let source = y << 4 | x;
            (0..4).fold(0, |m, i| m | (source >> (c >> (4 * i) & 7) & 1) << i)
        }
        _ => {
            // Narrow types read only their low bytes.
            let needed = ((1u32 << ty.bytes()) - 1) as Bytes;
            if x & y & z & needed == needed { all } else { 0 }
        }
    }
}
