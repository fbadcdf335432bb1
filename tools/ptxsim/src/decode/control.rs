//! Decoding of branches, barriers, operations between lanes, and the tensor cores.

use super::{Decoder, Modifiers};
use crate::error::Result;
use crate::instruction::{BarrierReduction, Group, IntOp, MmaShape, Op, Reg, ShuffleMode, Vote};
use crate::syntax::Operand;
use crate::types::{Space, Type};

impl<'a> Decoder<'_, 'a> {
    pub(super) fn control(
        &mut self,
        base: &str,
        m: &mut Modifiers<'a>,
        o: &[Operand<'a>],
    ) -> Result<Option<Op>> {
        let op = match base {
            "bra" => {
                m.take("uni");
                self.arity(o, 1)?;
                Op::Branch { target: self.label(&o[0])? }
            }
            "brx" => {
                m.take("uni");
                if !m.take("idx") {
                    return self.unsupported("only `brx.idx`");
                }
                self.arity(o, 2)?;
                let Operand::Symbol(name, 0) = o[1] else { return self.wrong("a list of labels is needed") };
                let Some(list) = self.text.branch_targets.get(name) else {
                    return self.wrong(format!("`{name}` is not a `.branchtargets` list"));
                };
                let targets: Result<_> =
                    list.iter().map(|label| self.label(&Operand::Symbol(label, 0))).collect();
                Op::BranchIndex { index: self.source(&o[0], Type::U32)?, targets: targets? }
            }
            "ret" | "exit" => {
                m.take("uni");
                Op::Exit
            }
            "trap" | "brkpt" => Op::Trap,
            "bar" | "barrier" => self.barrier(m, o)?,
            "membar" | "fence" => {
                m.rest.clear();
                Op::Fence
            }
            "nanosleep" | "griddepcontrol" => {
                m.rest.clear();
                Op::Nothing
            }
            "shfl" => self.shuffle(m, o)?,
            "vote" => self.vote(m, o)?,
            "match" => self.match_lanes(m, o)?,
            "redux" => self.redux(m, o)?,
            "activemask" => {
                self.one_type(m)?;
                self.arity(o, 1)?;
                Op::ActiveMask { d: self.target(&o[0], Type::B32)? }
            }
            "ldmatrix" | "stmatrix" => self.matrix(base == "ldmatrix", m, o)?,
            "movmatrix" => {
                self.arity(o, 2)?;
                let form = ["sync", "aligned", "m8n8", "trans", "b16"];
                if !form.iter().all(|w| m.take(w)) {
                    return self.unsupported("only `movmatrix.sync.aligned.m8n8.trans.b16`");
                }
                Op::MoveMatrix { a: self.source(&o[1], Type::B32)?, d: self.target(&o[0], Type::B32)? }
            }
            "mma" => self.mma(m, o)?,
            _ => return Ok(None),
        };
        Ok(Some(op))
    }

    fn sync(&self, m: &mut Modifiers<'a>) -> Result<()> {
        if m.take("sync") { Ok(()) } else { self.unsupported("only the `.sync` form") }
    }

    fn barrier(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        m.take("cta");
        m.take("aligned");
        if m.take("warp") {
            self.sync(m)?;
            self.arity(o, 1)?;
            return Ok(Op::WarpBarrier { members: self.source(&o[0], Type::B32)? });
        }
        if m.take("arrive") {
            self.arity(o, 2)?;
            return Ok(Op::BarrierArrive {
                id: self.source(&o[0], Type::U32)?,
                threads: self.source(&o[1], Type::U32)?,
            });
        }
        if m.take("red") {
            let kind = m.find(|w| matches!(w, "popc" | "and" | "or").then(|| w.to_string()));
            m.find(|w| matches!(w, "u32" | "pred").then_some(()));
            if o.len() != 3 && o.len() != 4 {
                return self.wrong("needs 3 or 4 operands");
            }
            let id = self.source(&o[1], Type::U32)?;
            let threads = if o.len() == 4 { Some(self.source(&o[2], Type::U32)?) } else { None };
            let predicate = self.predicate(&o[o.len() - 1])?;
            let reduction = match kind.as_deref() {
                Some("popc") => BarrierReduction::Popc(self.target(&o[0], Type::U32)?),
                Some("and") => BarrierReduction::And(self.target_predicate(&o[0])?),
                Some("or") => BarrierReduction::Or(self.target_predicate(&o[0])?),
                _ => return self.unsupported("reduction"),
            };
            return Ok(Op::Barrier { id, threads, reduction: Some((reduction, predicate)) });
        }
        self.sync(m)?;
        if o.is_empty() || o.len() > 2 {
            return self.wrong("needs 1 or 2 operands");
        }
        let id = self.source(&o[0], Type::U32)?;
        let threads = match o.get(1) {
            Some(count) => Some(self.source(count, Type::U32)?),
            None => None,
        };
        Ok(Op::Barrier { id, threads, reduction: None })
    }

    fn shuffle(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.sync(m)?;
        self.arity(o, 5)?;
        let mode = m.find(|w| {
            Some(match w {
                "up" => ShuffleMode::Up,
                "down" => ShuffleMode::Down,
                "bfly" => ShuffleMode::Butterfly,
                "idx" => ShuffleMode::Index,
                _ => return None,
            })
        });
        let Some(mode) = mode else { return self.unsupported("lane pattern") };
        self.one_type(m)?;
        let a = self.source(&o[1], Type::B32)?;
        let b = self.source(&o[2], Type::B32)?;
        let c = self.source(&o[3], Type::B32)?;
        let members = self.source(&o[4], Type::B32)?;
        let (d, p) = match &o[0] {
            Operand::Pair(d, p) => (self.target(d, Type::B32)?, Some(self.target_predicate(p)?)),
            d => (self.target(d, Type::B32)?, None),
        };
        Ok(Op::Shuffle { mode, d, p, a, b, c, members })
    }

    fn vote(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.sync(m)?;
        self.arity(o, 3)?;
        let vote = m.find(|w| {
            Some(match w {
                "all" => Vote::All,
                "any" => Vote::Any,
                "uni" => Vote::Uniform,
                "ballot" => Vote::Ballot,
                _ => return None,
            })
        });
        let Some(vote) = vote else { return self.unsupported("vote") };
        self.one_type(m)?;
        let a = self.predicate(&o[1])?;
        let members = self.source(&o[2], Type::B32)?;
        let (d, p) = if vote == Vote::Ballot {
            (self.target(&o[0], Type::B32)?, 0)
        } else {
            (Reg::NONE, self.target_predicate(&o[0])?)
        };
        Ok(Op::Vote { vote, d, p, a, members })
    }

    fn match_lanes(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        let all = m.take("all");
        if !all && !m.take("any") {
            return self.unsupported("`match` without `.any` or `.all`");
        }
        self.sync(m)?;
        self.arity(o, 3)?;
        let ty = self.one_type(m)?;
        let a = self.source(&o[1], ty)?;
        let members = self.source(&o[2], Type::B32)?;
        let (d, p) = match &o[0] {
            Operand::Pair(d, p) if all => (self.target(d, Type::B32)?, Some(self.target_predicate(p)?)),
            d => (self.target(d, Type::B32)?, None),
        };
        Ok(Op::Match { all, long: ty.is_long(), d, p, a, members })
    }

    fn redux(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.sync(m)?;
        self.arity(o, 3)?;
        let op = m.find(|w| {
            Some(match w {
                "add" => IntOp::Add,
                "min" => IntOp::Min,
                "max" => IntOp::Max,
                "and" => IntOp::And,
                "or" => IntOp::Or,
                "xor" => IntOp::Xor,
                _ => return None,
            })
        });
        let Some(op) = op else { return self.unsupported("reduction") };
        let ty = self.one_type(m)?;
        if ty.bits() != 32 || ty.is_float() {
            return self.unsupported("type");
        }
        Ok(Op::Redux {
            op,
            ty,
            a: self.source(&o[1], ty)?,
            members: self.source(&o[2], Type::B32)?,
            d: self.target(&o[0], ty)?,
        })
    }

    fn matrix(&mut self, load: bool, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.sync(m)?;
        self.arity(o, 2)?;
        m.take("aligned");
        if !m.take("m8n8") {
            return self.unsupported("only `.m8n8`");
        }
        let count = m.find(|w| match w {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let transposed = m.take("trans");
        if m.find(Space::parse).is_some_and(|s| s != Space::Shared) || !m.take("b16") {
            return self.unsupported("only 16-bit elements in shared memory");
        }
        let (registers, address) = if load { (&o[0], &o[1]) } else { (&o[1], &o[0]) };
        let address = self.address(address)?;
        let group = self.group(registers, Type::B32, load)?;
        if Some(group.count) != count {
            return self.wrong("the number of registers does not match `.x1`, `.x2` or `.x4`");
        }
        Ok(if load {
            Op::LoadMatrix { transposed, d: group, address }
        } else {
            Op::StoreMatrix { transposed, a: group, address }
        })
    }

    fn mma(&mut self, m: &mut Modifiers<'a>, o: &[Operand<'a>]) -> Result<Op> {
        self.sync(m)?;
        self.arity(o, 4)?;
        m.take("aligned");
        let k = m.find(|w| match w {
            "m16n8k4" => Some(4),
            "m16n8k8" => Some(8),
            "m16n8k16" => Some(16),
            _ => None,
        });
        let Some(k) = k else { return self.unsupported("shape") };
        if !m.take("row") || !m.take("col") {
            return self.unsupported("only `.row.col`");
        }
        let mut types = [Type::Pred; 4];
        for ty in &mut types {
            *ty = self.one_type(m)?;
        }
        let [d_type, a_type, b_type, c_type] = types;
        let inputs = match a_type {
            Type::F16 | Type::Bf16 => k != 4,
            Type::Tf32 => k != 16,
            _ => false,
        };
        let outputs = d_type == Type::F32 || (d_type == Type::F16 && a_type == Type::F16);
        if !inputs || a_type != b_type || d_type != c_type || !outputs {
            return self.unsupported("types");
        }
        // 16·k elements of A and 8·k of B over 32 lanes, of which a register holds one or two.
        let per_register = if a_type == Type::Tf32 { 1 } else { 2 };
        let (a_count, b_count) = (k / 2 / per_register, k / 4 / per_register);
        let c_count = if d_type == Type::F32 { 4 } else { 2 };
        let c_register = if d_type == Type::F32 { Type::F32 } else { Type::B32 };
        let a = self.fragment(&o[1], Type::B32, false, a_count)?;
        let b = self.fragment(&o[2], Type::B32, false, b_count)?;
        let c = self.fragment(&o[3], c_register, false, c_count)?;
        let d = self.fragment(&o[0], c_register, true, c_count)?;
        Ok(Op::Mma { shape: MmaShape { k, input: a_type, output: d_type }, d, a, b, c })
    }

    fn fragment(&mut self, operand: &Operand<'a>, ty: Type, write: bool, count: u8) -> Result<Group> {
        let group = self.group(operand, ty, write)?;
        if group.count != count {
            return self.wrong(format!("a fragment of {} registers where {count} are needed", group.count));
        }
        Ok(group)
    }
}
