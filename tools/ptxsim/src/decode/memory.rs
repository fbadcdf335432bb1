//! Decoding of loads, stores, atomics, asynchronous copies and address conversions.

use super::{Decoder, Modifiers};
use crate::error::Result;
use crate::instruction::{Access, AtomicOp, Constant, Op, Pred, Reg};
use crate::module::Symbol;
use crate::syntax::{Base, Operand};
use crate::types::{Space, Type};

// Hints that say where to cache; they change no value.
fn is_cache_hint(word: &str) -> bool {
    matches!(
        word,
        "ca" | "cg"
            | "cs"
            | "lu"
            | "cv"
            | "wb"
            | "wt"
            | "nc"
            | "L1::evict_normal"
            | "L1::evict_unchanged"
            | "L1::evict_first"
            | "L1::evict_last"
            | "L1::no_allocate"
            | "L2::64B"
            | "L2::128B"
            | "L2::256B"
            | "L2::evict_first"
            | "L2::evict_last"
            | "L2::evict_normal"
            | "weak"
    )
}

fn drop_hints(m: &mut Modifiers<'_>) {
    m.rest.retain(|w| !is_cache_hint(w));
}

// Memory order and scope. Stronger than weak means that other threads may look on.
fn take_strength(m: &mut Modifiers<'_>) -> bool {
    let before = m.rest.len();
    m.rest.retain(|w| !matches!(*w, "volatile" | "relaxed" | "acquire" | "release" | "acq_rel" | "mmio"));
    let strong = m.rest.len() != before;
    m.rest.retain(|w| !matches!(*w, "cta" | "cluster" | "gpu" | "sys"));
    strong
}

impl<'a> Decoder<'_, 'a> {
    pub(super) fn memory(
        &mut self,
        base: &str,
        m: &mut Modifiers<'a>,
        o: &[Operand<'a>],
    ) -> Result<Option<Op>> {
        let op = match base {
            "ld" | "ldu" => self.load(m, o)?,
            "st" => self.store(m, o)?,
            "atom" => self.atomic(true, m, o)?,
            "red" => self.atomic(false, m, o)?,
            "cp" => self.copy_async(m, o)?,
            "cvta" => {
                self.arity(o, 2)?;
                let to_generic = !m.take("to");
                let Some(space) = m.find(Space::parse) else { return self.unsupported("no state space") };
                let ty = self.one_type(m)?;
                if space == Space::Param {
                    return self.unsupported("addresses of parameters");
                }
                Op::ConvertAddress {
                    space,
                    to_generic,
                    long: ty.is_long(),
                    a: self.source(&o[1], ty)?,
                    d: self.target(&o[0], ty)?,
                }
            }
            "isspacep" => {
                self.arity(o, 2)?;
                let Some(space) = m.find(Space::parse) else { return self.unsupported("no state space") };
                Op::IsSpace { space, a: self.source(&o[1], Type::B64)?, d: self.target_predicate(&o[0])? }
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                m.rest.clear();
                Op::Nothing
            }
            _ => return Ok(None),
        };
        Ok(Some(op))
    }

    fn vector_count(&self, m: &mut Modifiers<'a>) -> u8 {
        m.find(|w| match w {
            "v2" => Some(2),
            "v4" => Some(4),
            _ => None,
        })
        .unwrap_or(1)
    }

    fn load(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.arity(o, 2)?;
        drop_hints(m);
        let strong = take_strength(m);
        let space = m.find(Space::parse).unwrap_or(Space::Generic);
        let count = self.vector_count(m);
        let ty = self.one_type(m)?;
        if space == Space::Param {
            return self.load_parameter(ty, count, o);
        }
        let address = self.address(&o[1])?;
        let d = self.group(&o[0], ty, true)?;
        self.check_vector(ty, count, d.count)?;
        let access = Access { space, width: ty.bytes() as u8, count, signed: ty.is_signed(), strong };
        Ok(Op::Load { access, d, address })
    }

    fn check_vector(&self, ty: Type, count: u8, registers: u8) -> Result<()> {
        if count != registers {
            return self.wrong(format!("a vector of {count} with {registers} registers"));
        }
        if ty.bytes() * u32::from(count) > 16 || matches!(ty, Type::Pred) {
            return self.unsupported("more than 16 bytes in one access");
        }
        Ok(())
    }

    // A parameter is a constant of the launch.
    fn load_parameter(&mut self, ty: Type, count: u8, o: &[Operand<'a>]) -> Result<Op> {
        let Operand::Address(Base::Symbol(name), at) = o[1] else {
            return self.unsupported("a parameter addressed through a register");
        };
        let Some(&Symbol::Parameter { offset, bytes }) = self.symbols.get(name) else {
            return self.wrong(format!("`{name}` is not a parameter"));
        };
        if at < 0 || at as u64 + u64::from(ty.bytes()) > u64::from(bytes) || count != 1 {
            return self.unsupported("a read outside the parameter, or a vector of it");
        }
        let a = self.constant(Constant::Parameter {
            offset: offset + at as u32,
            bytes: ty.bytes(),
            signed: ty.is_signed(),
        });
        let d = self.group(&o[0], ty, true)?;
        Ok(Op::Move { long: d.long, d: d.regs[0], a })
    }

    fn store(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.arity(o, 2)?;
        drop_hints(m);
        let strong = take_strength(m);
        let space = m.find(Space::parse).unwrap_or(Space::Generic);
        let count = self.vector_count(m);
        let ty = self.one_type(m)?;
        if matches!(space, Space::Param | Space::Const) {
            return self.unsupported("a store to this state space");
        }
        let address = self.address(&o[0])?;
        let a = self.group(&o[1], ty, false)?;
        self.check_vector(ty, count, a.count)?;
        let access = Access { space, width: ty.bytes() as u8, count, signed: false, strong };
        Ok(Op::Store { access, a, address })
    }

    fn atomic(&mut self, returns: bool, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        drop_hints(m);
        take_strength(m);
        m.take("noftz");
        let space = m.find(Space::parse).unwrap_or(Space::Generic);
        let op = m.find(|w| {
            Some(match w {
                "add" => AtomicOp::Add,
                "and" => AtomicOp::And,
                "or" => AtomicOp::Or,
                "xor" => AtomicOp::Xor,
                "exch" => AtomicOp::Exch,
                "cas" => AtomicOp::Cas,
                "min" => AtomicOp::Min,
                "max" => AtomicOp::Max,
                "inc" => AtomicOp::Inc,
                "dec" => AtomicOp::Dec,
                _ => return None,
            })
        });
        let Some(op) = op else { return self.unsupported("no operation this emulator knows") };
        let ty = self.one_type(m)?;
        let supported = match ty {
            Type::F32 | Type::F64 | Type::F16x2 | Type::Bf16x2 => op == AtomicOp::Add,
            Type::U32 | Type::S32 | Type::B32 | Type::U64 | Type::S64 | Type::B64 => true,
            _ => false,
        };
        if !supported || matches!(space, Space::Local | Space::Param | Space::Const) {
            return self.unsupported("type or state space");
        }
        let first = usize::from(returns);
        self.arity(o, first + 2 + usize::from(op == AtomicOp::Cas))?;
        let address = self.address(&o[first])?;
        let b = self.source(&o[first + 1], ty)?;
        let c = if op == AtomicOp::Cas { self.source(&o[first + 2], ty)? } else { Reg::NONE };
        let d = if returns { self.target(&o[0], ty)? } else { Reg::NONE };
        Ok(Op::Atomic { op, ty, space, d, address, b, c })
    }

    fn copy_async(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        if !m.take("async") {
            return self.unsupported("only `cp.async`");
        }
        if m.take("commit_group") {
            self.arity(o, 0)?;
            return Ok(Op::CopyCommit);
        }
        if m.take("wait_all") {
            self.arity(o, 0)?;
            return Ok(Op::CopyWait { pending: None });
        }
        if m.take("wait_group") {
            self.arity(o, 1)?;
            let Operand::Integer(pending) = o[0] else { return self.wrong("the count must be a literal") };
            return Ok(Op::CopyWait { pending: Some(pending.min(u32::MAX.into()) as u32) });
        }
        let bypass = m.take("cg");
        if !bypass && !m.take("ca") {
            return self.unsupported("only `.ca` and `.cg` copies");
        }
        drop_hints(m);
        if m.find(Space::parse) != Some(Space::Shared) || m.find(Space::parse) != Some(Space::Global) {
            return self.unsupported("only copies from global to shared memory");
        }
        if o.len() != 3 && o.len() != 4 {
            return self.wrong("needs 3 or 4 operands");
        }
        let Operand::Integer(bytes @ (4 | 8 | 16)) = o[2] else {
            return self.wrong("the size must be 4, 8 or 16");
        };
        if bypass && bytes != 16 {
            return self.wrong("`.cg` copies 16 bytes");
        }
        let (target, source) = (self.address(&o[0])?, self.address(&o[1])?);
        let (mut source_bytes, mut ignore): (Option<Reg>, Option<Pred>) = (None, None);
        match o.get(3) {
            Some(Operand::Register(r)) if r.bits == 1 => ignore = Some(self.predicate(&o[3])?),
            Some(Operand::Negated(_)) => ignore = Some(self.predicate(&o[3])?),
            Some(size) => source_bytes = Some(self.source(size, Type::B32)?),
            None => {}
        }
        Ok(Op::CopyAsync { bytes: bytes as u8, source, target, source_bytes, ignore })
    }
}
