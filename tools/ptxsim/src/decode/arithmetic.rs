//! Decoding of moves, arithmetic, comparisons and conversions.

use super::{Decoder, Modifiers};
use crate::error::Result;
use crate::instruction::{
    Comparison, Conversion, FloatMode, FloatOp, FloatTest, IntOp, Logic, Op, PrmtMode, Reg,
};
use crate::syntax::{File, Operand};
use crate::types::{Rounding, Type};

impl<'a> Decoder<'_, 'a> {
    pub(super) fn arithmetic(
        &mut self,
        base: &str,
        m: &mut Modifiers<'a>,
        o: &[Operand<'a>],
    ) -> Result<Option<Op>> {
        let op = match base {
            "mov" => self.mov(m, o)?,
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs"
            | "mul24" | "mad24" | "sad" | "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "popc"
            | "clz" | "brev" | "bfind" | "bfe" | "bfi" | "lop3" | "prmt" | "shf" => self.typed(base, m, o)?,
            "copysign" => self.float(FloatOp::Copysign, m, o, 2)?,
            "rcp" => self.float(FloatOp::Rcp, m, o, 1)?,
            "sqrt" => self.float(FloatOp::Sqrt, m, o, 1)?,
            "rsqrt" => self.float(FloatOp::Rsqrt, m, o, 1)?,
            "ex2" => self.float(FloatOp::Ex2, m, o, 1)?,
            "lg2" => self.float(FloatOp::Lg2, m, o, 1)?,
            "tanh" => self.float(FloatOp::Tanh, m, o, 1)?,
            "sin" => self.float(FloatOp::Sin, m, o, 1)?,
            "cos" => self.float(FloatOp::Cos, m, o, 1)?,
            "cvt" => self.convert(m, o)?,
            "setp" | "set" => self.compare(base == "set", m, o)?,
            "selp" => {
                self.arity(o, 4)?;
                let ty = self.one_type(m)?;
                Op::Select {
                    long: ty.is_long(),
                    d: self.target(&o[0], ty)?,
                    a: self.source(&o[1], ty)?,
                    b: self.source(&o[2], ty)?,
                    p: self.predicate(&o[3])?,
                }
            }
            "slct" => {
                self.arity(o, 4)?;
                m.take("ftz");
                let ty = self.one_type(m)?;
                let by = self.one_type(m)?;
                Op::SelectSign {
                    long: ty.is_long(),
                    float: by == Type::F32,
                    d: self.target(&o[0], ty)?,
                    a: self.source(&o[1], ty)?,
                    b: self.source(&o[2], ty)?,
                    c: self.source(&o[3], by)?,
                }
            }
            "testp" => {
                self.arity(o, 2)?;
                let test = m.find(|word| {
                    Some(match word {
                        "finite" => FloatTest::Finite,
                        "infinite" => FloatTest::Infinite,
                        "number" => FloatTest::Number,
                        "notanumber" => FloatTest::NotNumber,
                        "normal" => FloatTest::Normal,
                        "subnormal" => FloatTest::Subnormal,
                        _ => return None,
                    })
                });
                let Some(test) = test else { return self.unsupported("no test this emulator knows") };
                let ty = self.one_type(m)?;
                if !matches!(ty, Type::F32 | Type::F64) {
                    return self.unsupported("type");
                }
                Op::TestFloat { test, ty, d: self.target_predicate(&o[0])?, a: self.source(&o[1], ty)? }
            }
            _ => return Ok(None),
        };
        Ok(Some(op))
    }

    fn mov(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.arity(o, 2)?;
        let ty = self.one_type(m)?;
        if ty == Type::Pred {
            return Ok(Op::MovePredicate { a: self.predicate(&o[1])?, d: self.target_predicate(&o[0])? });
        }
        let long = ty.is_long();
        match (&o[0], &o[1]) {
            (_, Operand::Vector(parts)) => {
                let part_bits = self.part_bits(ty, parts.len())?;
                let part = if part_bits == 32 { Type::B32 } else { Type::B16 };
                Ok(Op::Pack {
                    long,
                    parts: self.group(&o[1], part, false)?,
                    d: self.target(&o[0], ty)?,
                    part_bits,
                })
            }
            (Operand::Vector(parts), _) => {
                let part_bits = self.part_bits(ty, parts.len())?;
                let part = if part_bits == 32 { Type::B32 } else { Type::B16 };
                Ok(Op::Unpack {
                    long,
                    a: self.source(&o[1], ty)?,
                    parts: self.group(&o[0], part, true)?,
                    part_bits,
                })
            }
            (_, Operand::Special("%clock" | "%clock_hi")) if !long => {
                Ok(Op::Clock { long, d: self.target(&o[0], ty)? })
            }
            (_, Operand::Special("%clock64" | "%globaltimer")) if long => {
                Ok(Op::Clock { long, d: self.target(&o[0], ty)? })
            }
            _ => Ok(Op::Move { long, a: self.source(&o[1], ty)?, d: self.target(&o[0], ty)? }),
        }
    }

    fn part_bits(&self, ty: Type, parts: usize) -> Result<u8> {
        match (ty.bits(), parts) {
            (64, 2) => Ok(32),
            (64, 4) | (32, 2) => Ok(16),
            (bits, _) => self.unsupported(format!("{parts} parts of {bits} bits")),
        }
    }

    // Opcodes whose meaning depends on whether the type is integer, float or predicate.
    fn typed(&mut self, base: &str, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        let float = m.rest.iter().any(|w| Type::parse(w).is_some_and(Type::is_float));
        if float {
            let nan = m.take("NaN");
            let (op, arity) = match (base, nan) {
                ("add", _) => (FloatOp::Add, 2),
                ("sub", _) => (FloatOp::Sub, 2),
                ("mul", _) => (FloatOp::Mul, 2),
                ("fma" | "mad", _) => (FloatOp::Fma, 3),
                ("div", _) => (FloatOp::Div, 2),
                ("min", false) => (FloatOp::Min, 2),
                ("max", false) => (FloatOp::Max, 2),
                ("min", true) => (FloatOp::MinNan, 2),
                ("max", true) => (FloatOp::MaxNan, 2),
                ("neg", _) => (FloatOp::Neg, 1),
                ("abs", _) => (FloatOp::Abs, 1),
                _ => return self.unsupported("floating-point type"),
            };
            return self.float(op, m, o, arity);
        }
        if m.take("pred") {
            return self.predicate_logic(base, o);
        }
        self.integer(base, m, o)
    }

    fn predicate_logic(&mut self, base: &str, o: &[Operand<'a>]) -> Result<Op> {
        let logic = match base {
            "and" => Logic::And,
            "or" => Logic::Or,
            "xor" => Logic::Xor,
            "not" => {
                self.arity(o, 2)?;
                let mut a = self.predicate(&o[1])?;
                a.negated = !a.negated;
                return Ok(Op::MovePredicate { a, d: self.target_predicate(&o[0])? });
            }
            _ => return self.unsupported("predicate type"),
        };
        self.arity(o, 3)?;
        Ok(Op::PredicateLogic {
            logic,
            a: self.predicate(&o[1])?,
            b: self.predicate(&o[2])?,
            d: self.target_predicate(&o[0])?,
        })
    }

    fn integer(&mut self, base: &str, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        if m.take("wide") {
            let ty = self.one_type(m)?;
            let wide = if ty.bits() == 32 { Type::B64 } else { Type::B32 };
            if !matches!(ty, Type::U16 | Type::S16 | Type::U32 | Type::S32) {
                return self.unsupported("wide product of this type");
            }
            let c = match base {
                "mul" => {
                    self.arity(o, 3)?;
                    None
                }
                "mad" => {
                    self.arity(o, 4)?;
                    Some(self.source(&o[3], wide)?)
                }
                _ => return self.unsupported("`.wide` here"),
            };
            let (a, b) = (self.source(&o[1], ty)?, self.source(&o[2], ty)?);
            return Ok(Op::MulWide { ty, a, b, c, d: self.target(&o[0], wide)? });
        }
        let half = m.find(|w| match w {
            "lo" => Some(false),
            "hi" => Some(true),
            _ => None,
        });
        let saturate = m.take("sat");
        let (op, arity) = match (base, half) {
            ("add", None) if saturate => (IntOp::AddSat, 2),
            ("sub", None) if saturate => (IntOp::SubSat, 2),
            ("add", None) => (IntOp::Add, 2),
            ("sub", None) => (IntOp::Sub, 2),
            ("mul", Some(false)) => (IntOp::MulLo, 2),
            ("mul", Some(true)) => (IntOp::MulHi, 2),
            ("mad", Some(false)) => (IntOp::MadLo, 3),
            ("mad", Some(true)) => (IntOp::MadHi, 3),
            ("mul24", Some(false)) => (IntOp::Mul24Lo, 2),
            ("mul24", Some(true)) => (IntOp::Mul24Hi, 2),
            ("mad24", Some(false)) => (IntOp::Mad24Lo, 3),
            ("sad", None) => (IntOp::Sad, 3),
            ("div", None) => (IntOp::Div, 2),
            ("rem", None) => (IntOp::Rem, 2),
            ("min", None) => (IntOp::Min, 2),
            ("max", None) => (IntOp::Max, 2),
            ("and", None) => (IntOp::And, 2),
            ("or", None) => (IntOp::Or, 2),
            ("xor", None) => (IntOp::Xor, 2),
            ("not", None) => (IntOp::Not, 1),
            ("cnot", None) => (IntOp::Cnot, 1),
            ("neg", None) => (IntOp::Neg, 1),
            ("abs", None) => (IntOp::Abs, 1),
            ("shl", None) => (IntOp::Shl, 2),
            ("shr", None) => (IntOp::Shr, 2),
            ("popc", None) => (IntOp::Popc, 1),
            ("clz", None) => (IntOp::Clz, 1),
            ("brev", None) => (IntOp::Brev, 1),
            ("bfind", None) => (if m.take("shiftamt") { IntOp::BfindShift } else { IntOp::Bfind }, 1),
            ("bfe", None) => (IntOp::Bfe, 3),
            ("bfi", None) => (IntOp::Bfi, 4),
            ("lop3", None) => return self.lop3(m, o),
            ("prmt", None) => (IntOp::Prmt(prmt_mode(m)), 3),
            ("shf", None) => {
                let wrap = m.take("wrap");
                if !wrap && !m.take("clamp") {
                    return self.unsupported("`shf` without `.wrap` or `.clamp`");
                }
                (if m.take("l") { IntOp::ShfLeft { wrap } } else { IntOp::ShfRight { wrap } }, 3)
            }
            _ => return self.unsupported("this form"),
        };
        if matches!(op, IntOp::ShfRight { .. }) && !m.take("r") {
            return self.unsupported("`shf` without a direction");
        }
        let ty = self.one_type(m)?;
        if !ty.is_integer() || (matches!(op, IntOp::AddSat | IntOp::SubSat) && ty != Type::S32) {
            return self.unsupported("type");
        }
        let words_only = matches!(
            op,
            IntOp::Prmt(_)
                | IntOp::ShfLeft { .. }
                | IntOp::ShfRight { .. }
                | IntOp::Mul24Lo
                | IntOp::Mul24Hi
                | IntOp::Mad24Lo
        );
        let no_halves = matches!(
            op,
            IntOp::Popc
                | IntOp::Clz
                | IntOp::Brev
                | IntOp::Bfind
                | IntOp::BfindShift
                | IntOp::Bfe
                | IntOp::Bfi
        );
        if (words_only && ty.bits() != 32) || (no_halves && ty.bits() < 32) {
            return self.unsupported("type");
        }
        if saturate && !matches!(op, IntOp::AddSat | IntOp::SubSat) {
            return self.unsupported("`.sat` here");
        }
        self.arity(o, arity + 1)?;
        let mut r = [Reg::NONE; 4];
        for (i, reg) in r.iter_mut().enumerate().take(arity) {
            // Shift amounts, field positions and lengths are words whatever the type.
            let word = matches!(
                (op, i),
                (IntOp::Shl | IntOp::Shr, 1)
                    | (IntOp::Bfe, 1 | 2)
                    | (IntOp::Bfi, 2 | 3)
                    | (IntOp::ShfLeft { .. } | IntOp::ShfRight { .. }, 2)
            );
            *reg = self.source(&o[i + 1], if word { Type::B32 } else { ty })?;
        }
        let counts = matches!(op, IntOp::Popc | IntOp::Clz | IntOp::Bfind | IntOp::BfindShift);
        let d = self.target(&o[0], if counts { Type::B32 } else { ty })?;
        Ok(Op::Int { op, ty, d, a: r[0], b: r[1], c: r[2], e: r[3] })
    }

    fn lop3(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.arity(o, 5)?;
        let ty = self.one_type(m)?;
        if ty != Type::B32 {
            return self.unsupported("type");
        }
        let Operand::Integer(table @ 0..=255) = o[4] else { return self.wrong("the table must be a byte") };
        let (a, b, c) = (self.source(&o[1], ty)?, self.source(&o[2], ty)?, self.source(&o[3], ty)?);
        Ok(Op::Int { op: IntOp::Lop3(table as u8), ty, a, b, c, e: Reg::NONE, d: self.target(&o[0], ty)? })
    }

    fn float(&mut self, op: FloatOp, m: &mut Modifiers<'a>, o: &[Operand<'a>], arity: usize) -> Result<Op> {
        self.arity(o, arity + 1)?;
        let rounding = m.find(Rounding::parse);
        let (approx, full) = (m.take("approx"), m.take("full"));
        let mut mode = FloatMode {
            approximate: approx || full,
            rounding: rounding.unwrap_or(Rounding::Nearest),
            ftz: m.take("ftz"),
            sat: m.take("sat"),
            relu: m.take("relu"),
        };
        let ty = self.one_type(m)?;
        let op = match (op, approx, full) {
            (FloatOp::Div, true, false) => FloatOp::DivApprox,
            (FloatOp::Div, false, true) => FloatOp::DivFull,
            (_, _, true) => return self.unsupported("`.full` here"),
            (op, ..) => op,
        };
        let approximate = matches!(
            op,
            FloatOp::Rsqrt | FloatOp::Ex2 | FloatOp::Lg2 | FloatOp::Tanh | FloatOp::Sin | FloatOp::Cos
        );
        let either = matches!(op, FloatOp::Rcp | FloatOp::Sqrt | FloatOp::DivApprox);
        mode.approximate |= approximate;
        if approx && !approximate && !either {
            return self.unsupported("`.approx` here");
        }
        if matches!(mode.rounding, Rounding::NearestAway) {
            return self.unsupported("`.rna` here");
        }
        let supported = match ty {
            Type::F32 => true,
            Type::F64 => {
                !matches!(op, FloatOp::Ex2 | FloatOp::Lg2 | FloatOp::Tanh | FloatOp::Sin | FloatOp::Cos)
                    && matches!(mode.rounding, Rounding::Nearest)
            }
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => {
                matches!(
                    op,
                    FloatOp::Add
                        | FloatOp::Sub
                        | FloatOp::Mul
                        | FloatOp::Fma
                        | FloatOp::Min
                        | FloatOp::Max
                        | FloatOp::MinNan
                        | FloatOp::MaxNan
                        | FloatOp::Neg
                        | FloatOp::Abs
                        | FloatOp::Ex2
                        | FloatOp::Tanh
                ) && matches!(mode.rounding, Rounding::Nearest)
            }
            _ => false,
        };
        if !supported {
            return self.unsupported("type or rounding");
        }
        let mut r = [Reg::NONE; 3];
        for (reg, operand) in r.iter_mut().zip(&o[1..]) {
            *reg = self.source(operand, ty)?;
        }
        Ok(Op::Float { op, ty, mode, a: r[0], b: r[1], c: r[2], d: self.target(&o[0], ty)? })
    }

    fn convert(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        let integral = m.find(Rounding::parse_integer);
        let rounding = m.find(Rounding::parse);
        let (ftz, sat, relu) = (m.take("ftz"), m.take("sat"), m.take("relu"));
        let to = self.one_type(m)?;
        let from = self.one_type(m)?;
        let packed = matches!(to, Type::F16x2 | Type::Bf16x2);
        self.arity(o, if packed { 3 } else { 2 })?;
        let ok = match (to, from) {
            (Type::F16x2 | Type::Bf16x2 | Type::Tf32, from) => from == Type::F32,
            (_, Type::Tf32 | Type::F16x2 | Type::Bf16x2 | Type::Pred) => false,
            (Type::Pred, _) => false,
            _ => true,
        };
        // Only the narrowing float conversions know `rna`, and only to tf32.
        let rna = rounding == Some(Rounding::NearestAway);
        if !ok || (rna && to != Type::Tf32) || (relu && !to.is_float()) {
            return self.unsupported("this pair of types");
        }
        if from.is_float() && to.is_integer() && integral.is_none() {
            return self.wrong("a conversion to an integer needs `.rni`, `.rzi`, `.rmi` or `.rpi`");
        }
        // The register may be wider than the source type, which then takes its low bits.
        let wide = |operand: &Operand<'a>, ty: Type| match operand {
            Operand::Register(r) => r.file == File::Long,
            _ => ty.is_long(),
        };
        let from_long = wide(&o[1], from);
        if (from.is_long() && !from_long) || wide(&o[0], to) != to.is_long() {
            return self.unsupported("a register of another width than the type");
        }
        let conversion = Conversion {
            to,
            from,
            from_long,
            rounding: integral.or(rounding).unwrap_or(Rounding::Nearest),
            integral: integral.is_some(),
            ftz,
            sat,
            relu,
        };
        let a = self.source_in(&o[1], from_long, from)?;
        let b = if packed { self.source(&o[2], from)? } else { Reg::NONE };
        Ok(Op::Convert { conversion, a, b, d: self.target(&o[0], to)? })
    }

    fn compare(&mut self, set: bool, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        let ftz = m.take("ftz");
        let float_result = if set {
            match m.find(Type::parse) {
                Some(Type::U32 | Type::S32) => false,
                Some(Type::F32) => true,
                _ => return self.unsupported("result type of `set`"),
            }
        } else {
            false
        };
        let logic = m.find(|w| match w {
            "and" => Some(Logic::And),
            "or" => Some(Logic::Or),
            "xor" => Some(Logic::Xor),
            _ => None,
        });
        let ty = self.one_type(m)?;
        let Some(comparison) = m.find(|w| comparison(w, ty)) else {
            return self.unsupported("no comparison this emulator knows");
        };
        self.arity(o, if logic.is_some() { 4 } else { 3 })?;
        if matches!(ty, Type::Pred | Type::F16x2 | Type::Bf16x2 | Type::Tf32) {
            return self.unsupported("type");
        }
        let (a, b) = (self.source(&o[1], ty)?, self.source(&o[2], ty)?);
        let combine = match logic {
            Some(logic) => Some((logic, self.predicate(&o[3])?)),
            None => None,
        };
        if set {
            let d = self.target(&o[0], Type::B32)?;
            return Ok(Op::Set { comparison, ty, ftz, combine, float: float_result, d, a, b });
        }
        let (d, e) = match &o[0] {
            Operand::Pair(d, e) => (self.target_predicate(d)?, self.target_predicate(e)?),
            d => (self.target_predicate(d)?, self.always().index),
        };
        Ok(Op::Compare { comparison, ty, ftz, combine, d, e, a, b })
    }
}

fn prmt_mode(m: &mut Modifiers<'_>) -> PrmtMode {
    m.find(|w| {
        Some(match w {
            "f4e" => PrmtMode::F4e,
            "b4e" => PrmtMode::B4e,
            "rc8" => PrmtMode::Rc8,
            "ecl" => PrmtMode::Ecl,
            "ecr" => PrmtMode::Ecr,
            "rc16" => PrmtMode::Rc16,
            _ => return None,
        })
    })
    .unwrap_or(PrmtMode::Index)
}

// `lo`, `ls`, `hi`, `hs` are the unsigned spellings of the order relations; on integers `ltu` and so on do not exist.
fn comparison(word: &str, ty: Type) -> Option<Comparison> {
    let float = ty.is_float();
    Some(match word {
        "eq" => Comparison::Eq,
        "ne" => Comparison::Ne,
        "lt" => Comparison::Lt,
        "le" => Comparison::Le,
        "gt" => Comparison::Gt,
        "ge" => Comparison::Ge,
        "lo" if !float => Comparison::Lt,
        "ls" if !float => Comparison::Le,
        "hi" if !float => Comparison::Gt,
        "hs" if !float => Comparison::Ge,
        "equ" if float => Comparison::Equ,
        "neu" if float => Comparison::Neu,
        "ltu" if float => Comparison::Ltu,
        "leu" if float => Comparison::Leu,
        "gtu" if float => Comparison::Gtu,
        "geu" if float => Comparison::Geu,
        "num" if float => Comparison::Num,
        "nan" if float => Comparison::Nan,
        _ => return None,
    })
}
