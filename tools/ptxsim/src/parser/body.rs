//! The inside of a kernel: declarations, labels and statements, with every register name resolved in its scope.
//!
//! A name means the register of the innermost `{ }` that declares it. Scopes exist only while a body is read: statements
//! hold numbers, of which each declaration takes new ones, so two registers of one name in two scopes stay apart.

use std::collections::HashMap;

use super::Parser;
use crate::error::{Error, Result};
use crate::lexer::{Token, syntax};
use crate::syntax::{Base, File, KernelText, Location, Operand, Register, Statement};
use crate::types::Type;

// Names of one `{ }`; a range stands for `%r<33>`.
#[derive(Default)]
struct Scope<'a> {
    single: HashMap<&'a str, Register>,
    ranges: Vec<(&'a str, u32, Register)>,
}

impl<'a> Scope<'a> {
    fn find(&self, name: &str) -> Option<Register> {
        if let Some(&register) = self.single.get(name) {
            return Some(register);
        }
        let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(digits);
        let number: u32 = number.parse().ok()?;
        let &(_, count, first) = self.ranges.iter().find(|(p, _, _)| *p == prefix)?;
        (number < count).then(|| Register { index: first.index + number, ..first })
    }
}

// What is being built while a kernel body is read.
struct Body<'a> {
    kernel: KernelText<'a>,
    scopes: Vec<Scope<'a>>,
    location: Location,
}

impl<'a> Body<'a> {
    fn innermost(&mut self) -> &mut Scope<'a> {
        self.scopes.last_mut().expect("a body item is read only inside a scope")
    }

    fn find(&self, name: &str) -> Option<Register> {
        self.scopes.iter().rev().find_map(|scope| scope.find(name))
    }
}

impl<'a> Parser<'_, 'a> {
    /// Reads the body of `kernel`, its `{` taken, to the `}`.
    pub(super) fn body(&mut self, kernel: KernelText<'a>) -> Result<KernelText<'a>> {
        let mut body = Body { kernel, scopes: vec![Scope::default()], location: Location::default() };
        while !body.scopes.is_empty() {
            self.item(&mut body)?;
        }
        Ok(body.kernel)
    }

    fn item(&mut self, body: &mut Body<'a>) -> Result<()> {
        match self.peek() {
            Some(Token::Mark('{')) => {
                self.at += 1;
                body.scopes.push(Scope::default());
            }
            Some(Token::Mark('}')) => {
                self.at += 1;
                body.scopes.pop();
            }
            Some(Token::Mark(';')) => self.at += 1,
            Some(Token::Mark('@')) => self.statement(body)?,
            Some(Token::Word(word)) => match word {
                ".reg" => self.registers(body)?,
                ".shared" | ".local" | ".global" | ".const" => {
                    let variable = self.variable()?;
                    body.kernel.variables.push(variable);
                }
                ".loc" => self.location(body)?,
                ".pragma" => self.pragma()?,
                _ if self.tokens.get(self.at + 1).map(|s| s.token) == Some(Token::Mark(':')) => {
                    self.at += 2;
                    if self.take_word(".branchtargets") {
                        let mut list = Vec::new();
                        loop {
                            list.push(self.word()?);
                            if !self.take(',') {
                                break;
                            }
                        }
                        self.expect(';')?;
                        body.kernel.branch_targets.insert(word, list);
                    } else if body.kernel.labels.insert(word, body.kernel.statements.len() as u32).is_some() {
                        return Err(syntax(self.line(), format!("label `{word}` stands twice")));
                    }
                }
                ".param" => {
                    return Err(Error::Unsupported {
                        line: self.line(),
                        instruction: "call".into(),
                        message: "functions are not called; make them inline".into(),
                    });
                }
                _ if word.starts_with('.') => return self.fail("a directive of a kernel body"),
                _ => self.statement(body)?,
            },
            _ => return self.fail("a statement"),
        }
        Ok(())
    }

    // `.loc 1 27 3` and `.loc 1 15 2, function_name $L, inlined_at 1 27 3`
    fn location(&mut self, body: &mut Body<'a>) -> Result<()> {
        self.at += 1;
        let (file, line, _) = (self.small()?, self.small()?, self.small()?);
        let mut inlined_at = None;
        while self.take(',') {
            match self.word()? {
                "function_name" => {
                    self.word()?;
                    if self.take('+') {
                        self.integer()?;
                    }
                }
                "inlined_at" => {
                    inlined_at = Some((self.small()?, self.small()?));
                    self.small()?;
                }
                other => return Err(syntax(self.line(), format!("unknown `.loc` attribute `{other}`"))),
            }
        }
        body.location = Location { file, line, inlined_at };
        Ok(())
    }

    fn registers(&mut self, body: &mut Body<'a>) -> Result<()> {
        self.at += 1;
        let line = self.line();
        let word = self.word()?;
        let Some(ty) = Type::parse(word.trim_start_matches('.')) else {
            return Err(syntax(line, format!("registers of type `{word}` are not supported")));
        };
        let (file, slot) = match ty {
            Type::Pred => (File::Predicate, 2),
            _ if ty.is_long() => (File::Long, 1),
            _ => (File::Word, 0),
        };
        let bits = if ty == Type::Pred { 1 } else { ty.bits() as u8 };
        loop {
            let name = self.word()?;
            let index = body.kernel.registers[slot];
            let first = Register { file, index, bits };
            let count = if self.take('<') {
                let count = self.small()?;
                self.expect('>')?;
                body.innermost().ranges.push((name, count, first));
                count
            } else {
                body.innermost().single.insert(name, first);
                1
            };
            body.kernel.registers[slot] = index
                .checked_add(count)
                .filter(|&n| n < 1 << 20)
                .ok_or_else(|| syntax(line, "too many registers"))?;
            if !self.take(',') {
                break;
            }
        }
        self.expect(';')
    }

    fn statement(&mut self, body: &mut Body<'a>) -> Result<()> {
        let line = self.line();
        let guard = if self.take('@') {
            let negated = self.take('!');
            let name = self.word()?;
            match body.find(name) {
                Some(register) if register.file == File::Predicate => Some((register, negated)),
                _ => return Err(syntax(line, format!("`{name}` is not a predicate register"))),
            }
        } else {
            None
        };
        let opcode = self.word()?;
        let mut operands = Vec::new();
        while !self.take(';') {
            operands.push(self.operand(body)?);
            if !self.take(',') {
                self.expect(';')?;
                break;
            }
        }
        body.kernel.statements.push(Statement { guard, opcode, operands, line, location: body.location });
        Ok(())
    }

    fn operand(&mut self, body: &Body<'a>) -> Result<Operand<'a>> {
        let first = self.simple(body)?;
        if self.take('|') {
            let second = self.simple(body)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn simple(&mut self, body: &Body<'a>) -> Result<Operand<'a>> {
        let line = self.line();
        let Some(token) = self.peek() else { return self.fail("an operand") };
        match token {
            Token::Mark('{') => {
                self.at += 1;
                let mut list = Vec::new();
                while !self.take('}') {
                    list.push(self.simple(body)?);
                    self.take(',');
                }
                Ok(Operand::Vector(list))
            }
            Token::Mark('[') => {
                self.at += 1;
                let base = match self.peek() {
                    Some(Token::Word(name)) => {
                        self.at += 1;
                        match body.find(name) {
                            Some(register) => Base::Register(register),
                            None if name.starts_with('%') => {
                                return Err(syntax(line, format!("register `{name}` is not declared")));
                            }
                            None => Base::Symbol(name),
                        }
                    }
                    _ => Base::Absolute,
                };
                let offset = match (base, self.peek()) {
                    (Base::Absolute, _) => self.integer()? as i64,
                    (_, Some(Token::Mark('+'))) => {
                        self.at += 1;
                        self.integer()? as i64
                    }
                    (_, Some(Token::Mark('-'))) => self.integer()? as i64,
                    _ => 0,
                };
                self.expect(']')?;
                Ok(Operand::Address(base, offset))
            }
            Token::Mark('!') => {
                self.at += 1;
                let name = self.word()?;
                match body.find(name) {
                    Some(register) if register.file == File::Predicate => Ok(Operand::Negated(register)),
                    _ => Err(syntax(line, format!("`{name}` is not a predicate register"))),
                }
            }
            Token::Mark('-') | Token::Integer(_) => Ok(Operand::Integer(self.integer()?)),
            Token::Single(bits) => {
                self.at += 1;
                Ok(Operand::Single(bits))
            }
            Token::Double(bits) => {
                self.at += 1;
                Ok(Operand::Double(bits))
            }
            Token::Word("_") => {
                self.at += 1;
                Ok(Operand::Sink)
            }
            Token::Word(name) => {
                self.at += 1;
                if let Some(register) = body.find(name) {
                    return Ok(Operand::Register(register));
                }
                if name.starts_with('%') {
                    return Ok(Operand::Special(name));
                }
                let offset = if self.take('+') { self.integer()? as i64 } else { 0 };
                Ok(Operand::Symbol(name, offset))
            }
            _ => self.fail("an operand"),
        }
    }
}
