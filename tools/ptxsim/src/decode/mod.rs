//! Turns the syntactic form into the decoded form. Whatever is not in the subset is an error that names it.

mod arithmetic;
mod control;
mod memory;

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::instruction::{Address, Constant, Group, Instruction, Op, Pred, Reg, Slot};
use crate::lexer::syntax;
use crate::module::{DeviceVariable, Kernel, Module, ParameterSlot, Special, Symbol};
use crate::syntax::{Base, File, KernelText, ModuleText, Operand, Register, Statement, Variable};
use crate::types::{Space, Type};

/// Decodes a whole module.
///
/// # Errors
/// [`Error::Unsupported`] for an instruction outside the subset, [`Error::Syntax`] for wrong operands.
pub(crate) fn module(text: &ModuleText<'_>, id: u64) -> Result<Module> {
    let mut opcodes = Opcodes::default();
    let mut device = Vec::new();
    let mut kernels = Vec::with_capacity(text.kernels.len());
    let mut globals = HashMap::new();
    let mut shared = Layout::default();
    for variable in &text.variables {
        declare(variable, &mut globals, &mut device, &mut shared, &mut Layout::default())?;
    }
    for kernel in &text.kernels {
        kernels.push(decode_kernel(kernel, &text.variables, &globals, shared, &mut device, &mut opcodes)?);
    }
    let files = text
        .files
        .iter()
        .map(|(&number, name)| (number, name.rsplit(['/', '\\']).next().unwrap_or(name).to_string()));
    Ok(Module { id, files: files.collect(), opcodes: opcodes.names, variables: device, kernels })
}

#[derive(Default)]
struct Opcodes {
    names: Vec<String>,
    index: HashMap<String, u32>,
}

impl Opcodes {
    fn intern(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.index.get(name) {
            return index;
        }
        let index = self.names.len() as u32;
        self.names.push(name.to_string());
        self.index.insert(name.to_string(), index);
        index
    }
}

#[derive(Clone, Copy, Default)]
struct Layout {
    used: u32,
}

impl Layout {
    fn place(&mut self, align: u32, bytes: u32, line: u32) -> Result<u64> {
        let start = self.used.next_multiple_of(align);
        self.used = start.checked_add(bytes).ok_or_else(|| syntax(line, "variables too large"))?;
        Ok(start.into())
    }
}

fn declare<'a>(
    variable: &Variable<'a>,
    symbols: &mut HashMap<&'a str, Symbol>,
    device: &mut Vec<DeviceVariable>,
    shared: &mut Layout,
    local: &mut Layout,
) -> Result<()> {
    let symbol = match variable.space {
        // Dynamic shared memory starts behind all that is declared; see `decode_kernel`.
        Space::Shared if variable.bytes == 0 => return Ok(()),
        Space::Shared => Symbol::Fixed(shared.place(variable.align, variable.bytes, variable.line)?),
        Space::Local => Symbol::Fixed(local.place(variable.align, variable.bytes, variable.line)?),
        _ => {
            device.push(DeviceVariable {
                name: variable.name.to_string(),
                bytes: variable.bytes,
                initial: variable.initial.clone().unwrap_or_default(),
            });
            Symbol::Device(device.len() as u32 - 1)
        }
    };
    symbols.insert(variable.name, symbol);
    Ok(())
}

fn decode_kernel<'a>(
    text: &KernelText<'a>,
    module_variables: &[Variable<'a>],
    globals: &HashMap<&'a str, Symbol>,
    mut shared: Layout,
    device: &mut Vec<DeviceVariable>,
    opcodes: &mut Opcodes,
) -> Result<Kernel> {
    let mut symbols = globals.clone();
    let mut local = Layout::default();
    for variable in &text.variables {
        declare(variable, &mut symbols, device, &mut shared, &mut local)?;
    }
    let dynamic: Vec<_> = module_variables
        .iter()
        .chain(&text.variables)
        .filter(|v| v.space == Space::Shared && v.bytes == 0)
        .collect();
    let align = dynamic.iter().map(|v| v.align).max().unwrap_or(1);
    if !dynamic.is_empty() {
        shared.used = shared.used.next_multiple_of(align.max(16));
    }
    for variable in dynamic {
        symbols.insert(variable.name, Symbol::Fixed(shared.used.into()));
    }
    for parameter in &text.parameters {
        symbols
            .insert(parameter.name, Symbol::Parameter { offset: parameter.offset, bytes: parameter.bytes });
    }
    let mut decoder = Decoder {
        text,
        symbols,
        constants: Vec::new(),
        constant_index: HashMap::new(),
        specials: Vec::new(),
        words: text.registers[0],
        reads: Vec::new(),
        writes: Vec::new(),
        line: 0,
        opcode: "",
    };
    let mut code = Vec::with_capacity(text.statements.len() + 1);
    for statement in &text.statements {
        let op = decoder.statement(statement)?;
        code.push(Instruction {
            op,
            guard: statement.guard.map(|(r, negated)| Pred { index: r.index, negated }),
            reads: std::mem::take(&mut decoder.reads).into(),
            writes: std::mem::take(&mut decoder.writes).into(),
            opcode: opcodes.intern(statement.opcode),
            line: statement.line,
            location: statement.location,
        });
    }
    // A label may stand at the very end; falling off the end is a return.
    code.push(Instruction {
        op: Op::Exit,
        guard: None,
        reads: Box::default(),
        writes: Box::default(),
        opcode: opcodes.intern("exit"),
        line: text.statements.last().map_or(0, |s| s.line),
        location: text.statements.last().map_or_else(Default::default, |s| s.location),
    });
    let parameters: Vec<_> = text
        .parameters
        .iter()
        .map(|p| ParameterSlot { ty: p.ty, offset: p.offset, bytes: p.bytes })
        .collect();
    Ok(Kernel {
        name: text.name.to_string(),
        parameter_bytes: parameters.iter().map(|p| p.offset + p.bytes).max().unwrap_or(0),
        parameters,
        global_atomics: code.iter().any(|i| {
            matches!(i.op, Op::Atomic { space: Space::Global | Space::Generic, .. })
                || matches!(i.op, Op::Load { access, .. } | Op::Store { access, .. }
                    if access.strong && matches!(access.space, Space::Global | Space::Generic))
        }),
        shared_granule: granule(&code, Space::Shared),
        global_granule: granule(&code, Space::Global),
        code,
        constants: decoder.constants,
        // One predicate more: always true, see `Decoder::predicate`.
        registers: [decoder.words, text.registers[1], text.registers[2] + 1],
        specials: decoder.specials,
        shared_bytes: shared.used,
        local_bytes: local.used,
        max_threads: text.max_threads,
        required_threads: text.required_threads,
    })
}

fn granule(code: &[Instruction], wanted: Space) -> u32 {
    let width = |i: &Instruction| match i.op {
        Op::Load { access, .. } | Op::Store { access, .. }
            if access.space == wanted || access.space == Space::Generic =>
        {
            u32::from(access.width)
        }
        Op::Atomic { ty, space, .. } if space == wanted || space == Space::Generic => ty.bytes(),
        _ => 4,
    };
    code.iter().map(width).min().unwrap_or(4).min(4)
}

/// The modifiers of an opcode; each must be taken by somebody.
struct Modifiers<'a> {
    rest: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    fn take(&mut self, word: &str) -> bool {
        self.find(|m| (m == word).then_some(())).is_some()
    }

    fn find<T>(&mut self, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, value) = self.rest.iter().enumerate().find_map(|(i, m)| Some((i, read(m)?)))?;
        self.rest.remove(at);
        Some(value)
    }
}

struct Decoder<'k, 'a> {
    text: &'k KernelText<'a>,
    symbols: HashMap<&'a str, Symbol>,
    constants: Vec<Constant>,
    constant_index: HashMap<Constant, u32>,
    specials: Vec<(Special, u32)>,
    words: u32,
    reads: Vec<Slot>,
    writes: Vec<Slot>,
    line: u32,
    opcode: &'a str,
}

impl<'k, 'a> Decoder<'k, 'a> {
    fn unsupported<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::Unsupported { line: self.line, instruction: self.opcode.into(), message: message.into() })
    }

    fn wrong<T>(&self, message: impl AsRef<str>) -> Result<T> {
        Err(syntax(self.line, format!("`{}`: {}", self.opcode, message.as_ref())))
    }

    fn statement(&mut self, statement: &Statement<'a>) -> Result<Op> {
        self.line = statement.line;
        self.opcode = statement.opcode;
        let mut parts = statement.opcode.split('.');
        let base = parts.next().unwrap_or_default();
        let mut modifiers = Modifiers { rest: parts.collect() };
        let operands = &statement.operands[..];
        let op = match self.arithmetic(base, &mut modifiers, operands)? {
            Some(op) => op,
            None => match self.memory(base, &mut modifiers, operands)? {
                Some(op) => op,
                None => match self.control(base, &mut modifiers, operands)? {
                    Some(op) => op,
                    None => return self.unsupported("the emulator does not know this instruction"),
                },
            },
        };
        if let Some(left) = modifiers.rest.first() {
            return self.unsupported(format!("modifier `.{left}`"));
        }
        Ok(op)
    }

    fn arity(&self, operands: &[Operand<'a>], count: usize) -> Result<()> {
        if operands.len() == count {
            Ok(())
        } else {
            self.wrong(format!("needs {count} operands, has {}", operands.len()))
        }
    }

    fn one_type(&self, modifiers: &mut Modifiers<'a>) -> Result<Type> {
        match modifiers.find(Type::parse) {
            Some(ty) => Ok(ty),
            None => self.unsupported("no type this emulator knows"),
        }
    }

    fn constant(&mut self, constant: Constant) -> Reg {
        let next = self.constants.len() as u32;
        let index = *self.constant_index.entry(constant).or_insert(next);
        if index == next {
            self.constants.push(constant);
        }
        Reg::constant(index)
    }

    fn bits(&mut self, bits: u64) -> Reg {
        self.constant(Constant::Bits(bits))
    }

    // A source operand of type `ty`. Float immediates keep their bits; a decimal literal where a float stands is
    // refused, since PTX has no such form.
    fn source(&mut self, operand: &Operand<'a>, ty: Type) -> Result<Reg> {
        self.source_in(operand, ty.is_long(), ty)
    }

    fn source_in(&mut self, operand: &Operand<'a>, long: bool, ty: Type) -> Result<Reg> {
        match *operand {
            Operand::Register(register) => {
                self.check_file(register, long)?;
                self.reads.push(slot(register));
                Ok(Reg::variable(register.index))
            }
            Operand::Integer(value) if matches!(ty, Type::F32 | Type::F64) && value != 0 => {
                self.wrong("an integer literal where a float is needed")
            }
            Operand::Integer(value) => Ok(self.bits(value)),
            Operand::Single(bits) if ty == Type::F64 => {
                Ok(self.bits(f64::from(f32::from_bits(bits)).to_bits()))
            }
            Operand::Single(bits) => Ok(self.bits(bits.into())),
            Operand::Double(bits) if ty == Type::F32 => {
                Ok(self.bits((f64::from_bits(bits) as f32).to_bits().into()))
            }
            Operand::Double(bits) => Ok(self.bits(bits)),
            Operand::Special(name) => self.special(name, long),
            Operand::Symbol(name, offset) => self.symbol_address(name, offset),
            _ => self.wrong("an operand of the wrong kind"),
        }
    }

    fn symbol_address(&mut self, name: &str, offset: i64) -> Result<Reg> {
        match self.symbols.get(name).copied() {
            Some(Symbol::Fixed(address)) => Ok(self.bits(address.wrapping_add_signed(offset))),
            Some(Symbol::Device(index)) => Ok(self.constant(Constant::Variable { index, offset })),
            Some(Symbol::Parameter { .. }) => self.unsupported("taking the address of a parameter"),
            None if name == "WARP_SZ" => Ok(self.bits(32)),
            None => self.wrong(format!("`{name}` is not declared")),
        }
    }

    fn check_file(&self, register: Register, long: bool) -> Result<()> {
        match (register.file, long) {
            (File::Long, true) | (File::Word, false) => Ok(()),
            (File::Predicate, _) => self.wrong("a predicate register where a value is needed"),
            (File::Long, false) => self.wrong("a 64-bit register where at most 32 bits are needed"),
            (File::Word, true) => self.wrong("a 32-bit register where 64 bits are needed"),
        }
    }

    fn target(&mut self, operand: &Operand<'a>, ty: Type) -> Result<Reg> {
        self.target_in(operand, ty.is_long())
    }

    fn target_in(&mut self, operand: &Operand<'a>, long: bool) -> Result<Reg> {
        match *operand {
            Operand::Register(register) => {
                self.check_file(register, long)?;
                self.writes.push(slot(register));
                Ok(Reg::variable(register.index))
            }
            Operand::Sink => Ok(Reg::NONE),
            _ => self.wrong("the destination must be a register"),
        }
    }

    fn target_predicate(&mut self, operand: &Operand<'a>) -> Result<u32> {
        match *operand {
            Operand::Register(register) if register.file == File::Predicate => {
                self.writes.push(slot(register));
                Ok(register.index)
            }
            // Written and never read: the interpreter drops writes to the index that is always true.
            Operand::Sink => Ok(self.always().index),
            _ => self.wrong("the destination must be a predicate register"),
        }
    }

    fn always(&self) -> Pred {
        Pred { index: self.text.registers[2], negated: false }
    }

    fn predicate(&mut self, operand: &Operand<'a>) -> Result<Pred> {
        match *operand {
            Operand::Register(register) if register.file == File::Predicate => {
                self.reads.push(slot(register));
                Ok(Pred { index: register.index, negated: false })
            }
            Operand::Negated(register) => {
                self.reads.push(slot(register));
                Ok(Pred { index: register.index, negated: true })
            }
            Operand::Integer(value) => Ok(Pred { negated: value == 0, ..self.always() }),
            _ => self.wrong("a predicate is needed"),
        }
    }

    fn special(&mut self, name: &str, long: bool) -> Result<Reg> {
        let axis = |prefix: &str| match name.strip_prefix(prefix) {
            Some(".x") => Some(0),
            Some(".y") => Some(1),
            Some(".z") => Some(2),
            _ => None,
        };
        let special = if let Some(a) = axis("%tid") {
            Special::Tid(a)
        } else if let Some(a) = axis("%ntid") {
            Special::Ntid(a)
        } else if let Some(a) = axis("%ctaid") {
            Special::Ctaid(a)
        } else if let Some(a) = axis("%nctaid") {
            Special::Nctaid(a)
        } else {
            match name {
                "%laneid" => Special::Laneid,
                "%warpid" => Special::Warpid,
                "%nwarpid" => Special::Nwarpid,
                "%smid" => Special::Smid,
                "%nsmid" => Special::Nsmid,
                "%gridid" => Special::Gridid,
                "%lanemask_eq" => Special::LanemaskEq,
                "%lanemask_le" => Special::LanemaskLe,
                "%lanemask_lt" => Special::LanemaskLt,
                "%lanemask_ge" => Special::LanemaskGe,
                "%lanemask_gt" => Special::LanemaskGt,
                "%dynamic_smem_size" => Special::DynamicSharedSize,
                "%total_smem_size" => Special::TotalSharedSize,
                _ => return self.unsupported(format!("`{name}` is not a register this emulator knows")),
            }
        };
        if long {
            return self.unsupported(format!("`{name}` read as 64 bits"));
        }
        if let Some(&(_, index)) = self.specials.iter().find(|(s, _)| *s == special) {
            return Ok(Reg::variable(index));
        }
        let index = self.words;
        self.words += 1;
        self.specials.push((special, index));
        Ok(Reg::variable(index))
    }

    fn address(&mut self, operand: &Operand<'a>) -> Result<Address> {
        let Operand::Address(base, offset) = *operand else { return self.wrong("an address is needed") };
        match base {
            Base::Register(register) => {
                if register.file == File::Predicate {
                    return self.wrong("a predicate register as an address");
                }
                self.reads.push(slot(register));
                let long = register.file == File::Long;
                Ok(Address { base: Reg::variable(register.index), long, offset })
            }
            Base::Symbol(name) => {
                Ok(Address { base: self.symbol_address(name, offset)?, long: true, offset: 0 })
            }
            Base::Absolute => Ok(Address { base: self.bits(offset as u64), long: true, offset: 0 }),
        }
    }

    // `{a, b}` or a single register; the registers may be wider than the element, never narrower.
    fn group(&mut self, operand: &Operand<'a>, ty: Type, write: bool) -> Result<Group> {
        let single = std::slice::from_ref(operand);
        let list = if let Operand::Vector(list) = operand { &list[..] } else { single };
        if list.is_empty() || list.len() > 4 {
            return self.unsupported(format!("a vector of {} registers", list.len()));
        }
        let long =
            ty.is_long() || list.iter().any(|o| matches!(o, Operand::Register(r) if r.file == File::Long));
        let mut group = Group { regs: [Reg::NONE; 4], count: list.len() as u8, long };
        for (reg, operand) in group.regs.iter_mut().zip(list) {
            *reg = if write { self.target_in(operand, long)? } else { self.source_in(operand, long, ty)? };
        }
        Ok(group)
    }

    fn label(&self, operand: &Operand<'a>) -> Result<u32> {
        match operand {
            Operand::Symbol(name, 0) => match self.text.labels.get(name) {
                Some(&target) => Ok(target),
                None => self.wrong(format!("label `{name}` does not exist")),
            },
            _ => self.wrong("a label is needed"),
        }
    }
}

fn slot(register: Register) -> Slot {
    match register.file {
        File::Word => Slot::Word(register.index),
        File::Long => Slot::Long(register.index),
        File::Predicate => Slot::Predicate(register.index),
    }
}
