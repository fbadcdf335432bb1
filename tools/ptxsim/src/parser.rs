//! Reads tokens into a [`ModuleText`]: scopes and register names are resolved here, meaning is the decoder's work.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::lexer::{Spanned, Token, syntax, tokens};
use crate::syntax::{
    Base, File, KernelText, Location, ModuleText, Operand, Parameter, Register, Statement, Variable,
};
use crate::types::{Space, Type};

/// Parses a module.
///
/// # Errors
/// [`crate::Error::Syntax`] with the line.
pub fn parse(text: &str) -> Result<ModuleText<'_>> {
    let tokens = tokens(text)?;
    Parser { tokens: &tokens, at: 0, files: HashMap::new() }.module()
}

struct Parser<'t, 'a> {
    tokens: &'t [Spanned<'a>],
    at: usize,
    files: HashMap<u32, String>,
}

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

impl<'t, 'a> Parser<'t, 'a> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at.min(self.tokens.len().saturating_sub(1))).map_or(1, |s| s.line)
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|s| s.token)
    }

    fn fail<T>(&self, expected: &str) -> Result<T> {
        let found = match self.peek() {
            Some(token) => format!("{token:?}"),
            None => "the end of the text".into(),
        };
        Err(syntax(self.line(), format!("expected {expected}, found {found}")))
    }

    fn take(&mut self, mark: char) -> bool {
        let hit = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.take(mark) { Ok(()) } else { self.fail(&format!("`{mark}`")) }
    }

    fn take_word(&mut self, word: &str) -> bool {
        let hit = self.peek() == Some(Token::Word(word));
        self.at += usize::from(hit);
        hit
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.fail("a name"),
        }
    }

    fn integer(&mut self) -> Result<u64> {
        let negative = self.take('-');
        match self.peek() {
            Some(Token::Integer(value)) => {
                self.at += 1;
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            _ => self.fail("an integer"),
        }
    }

    fn small(&mut self) -> Result<u32> {
        let line = self.line();
        u32::try_from(self.integer()?).map_err(|_| syntax(line, "number out of range"))
    }

    fn module(mut self) -> Result<ModuleText<'a>> {
        let mut module = ModuleText::default();
        while let Some(token) = self.peek() {
            let Token::Word(word) = token else { return self.fail("a directive") };
            match word {
                ".version" => {
                    // The lexer reads `9.0` as three tokens.
                    self.at += 1;
                    while matches!(self.peek(), Some(Token::Integer(_) | Token::Mark('.'))) {
                        self.at += 1;
                    }
                }
                ".target" => {
                    self.at += 1;
                    module.target = self.word()?.to_string();
                    while self.take(',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    self.at += 1;
                    if self.integer()? != 64 {
                        return Err(syntax(self.line(), "only 64-bit addresses are supported"));
                    }
                }
                ".file" => self.file()?,
                ".section" => self.skip_braces()?,
                ".visible" | ".weak" | ".extern" | ".common" => self.at += 1,
                ".entry" => {
                    self.at += 1;
                    let kernel = self.kernel()?;
                    module.kernels.push(kernel);
                }
                // A function is dead code as long as nothing calls it, and `call` is an unsupported instruction.
                ".func" => self.skip_function()?,
                ".global" | ".const" | ".shared" => {
                    let variable = self.variable()?;
                    module.variables.push(variable);
                }
                _ => return self.fail("a directive of the module"),
            }
        }
        module.files = self.files;
        Ok(module)
    }

    fn file(&mut self) -> Result<()> {
        self.at += 1;
        let number = self.small()?;
        let Some(Token::Text(name)) = self.peek() else { return self.fail("a file name") };
        self.at += 1;
        while self.take(',') {
            self.integer()?;
        }
        self.files.insert(number, name.to_string());
        Ok(())
    }

    fn skip_braces(&mut self) -> Result<()> {
        while self.peek().is_some() && self.peek() != Some(Token::Mark('{')) {
            self.at += 1;
        }
        let mut depth = 0;
        loop {
            match self.peek() {
                Some(Token::Mark('{')) => depth += 1,
                Some(Token::Mark('}')) => depth -= 1,
                None => return self.fail("`}`"),
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn skip_function(&mut self) -> Result<()> {
        while let Some(token) = self.peek() {
            match token {
                Token::Mark('{') => return self.skip_braces(),
                Token::Mark(';') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => self.at += 1,
            }
        }
        self.fail("a function body")
    }

    // `.shared .align 4 .b8 name[512] = {…};`
    fn variable(&mut self) -> Result<Variable<'a>> {
        let line = self.line();
        let space = match self.word()? {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            other => return Err(syntax(line, format!("unknown state space `{other}`"))),
        };
        let mut align = None;
        let ty = loop {
            let word = self.word()?;
            match word {
                ".align" => align = Some(self.small()?),
                ".attribute" | ".ptr" => return Err(syntax(line, format!("`{word}` is not supported here"))),
                _ => match Type::parse(word.trim_start_matches('.')) {
                    Some(ty) => break ty,
                    None => return Err(syntax(line, format!("unknown type `{word}`"))),
                },
            }
        };
        let name = self.word()?;
        let mut elements: u32 = 1;
        while self.take('[') {
            let length = if self.peek() == Some(Token::Mark(']')) { 0 } else { self.small()? };
            elements = elements.checked_mul(length).ok_or_else(|| syntax(line, "array too large"))?;
            self.expect(']')?;
        }
        let initial = if self.take('=') {
            let mut bytes = Vec::new();
            self.initializer(ty, &mut bytes)?;
            Some(bytes)
        } else {
            None
        };
        self.expect(';')?;
        let bytes = elements.checked_mul(ty.bytes()).ok_or_else(|| syntax(line, "array too large"))?;
        if initial.as_ref().is_some_and(|i| i.len() > bytes as usize) {
            return Err(syntax(line, format!("too many initial values for `{name}`")));
        }
        Ok(Variable { name, space, align: align.unwrap_or(ty.bytes()).max(1), bytes, initial, line })
    }

    fn initializer(&mut self, ty: Type, out: &mut Vec<u8>) -> Result<()> {
        if self.take('{') {
            while !self.take('}') {
                self.initializer(ty, out)?;
                self.take(',');
            }
            return Ok(());
        }
        let negative = self.take('-');
        let value = match self.peek() {
            Some(Token::Integer(v)) => {
                if negative {
                    v.wrapping_neg()
                } else {
                    v
                }
            }
            Some(Token::Single(v)) if !negative => v.into(),
            Some(Token::Double(v)) if !negative => v,
            _ => return self.fail("a number (addresses in initialisers are not supported)"),
        };
        self.at += 1;
        out.extend_from_slice(&value.to_le_bytes()[..ty.bytes() as usize]);
        Ok(())
    }

    fn kernel(&mut self) -> Result<KernelText<'a>> {
        let mut kernel = KernelText { name: self.word()?, ..KernelText::default() };
        if self.take('(') {
            let mut offset = 0;
            while !self.take(')') {
                let parameter = self.parameter(&mut offset)?;
                kernel.parameters.push(parameter);
                self.take(',');
            }
        }
        loop {
            match self.peek() {
                Some(Token::Word(".maxntid")) => kernel.max_threads = Some(self.triple()?),
                Some(Token::Word(".reqntid")) => kernel.required_threads = Some(self.triple()?),
                Some(Token::Word(".minnctapersm" | ".maxnreg" | ".maxnctapersm")) => {
                    self.at += 1;
                    self.integer()?;
                }
                Some(Token::Word(".noreturn")) => self.at += 1,
                Some(Token::Word(".pragma")) => self.pragma()?,
                Some(Token::Mark('{')) => break,
                _ => return self.fail("a kernel directive or `{`"),
            }
        }
        self.expect('{')?;
        let mut body = Body { kernel, scopes: vec![Scope::default()], location: Location::default() };
        while !body.scopes.is_empty() {
            self.body_item(&mut body)?;
        }
        Ok(body.kernel)
    }

    fn pragma(&mut self) -> Result<()> {
        self.at += 1;
        while matches!(self.peek(), Some(Token::Text(_))) {
            self.at += 1;
            self.take(',');
        }
        self.expect(';')
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        self.at += 1;
        let mut out = [1; 3];
        for (i, slot) in out.iter_mut().enumerate() {
            if i > 0 && !self.take(',') {
                break;
            }
            *slot = self.small()?;
        }
        Ok(out)
    }

    fn parameter(&mut self, offset: &mut u32) -> Result<Parameter<'a>> {
        let line = self.line();
        if !self.take_word(".param") {
            return self.fail("`.param`");
        }
        let (mut align, mut ty) = (None, None);
        let name = loop {
            let word = self.word()?;
            match word {
                ".align" => align = Some(self.small()?),
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                _ if ty.is_none() && word.starts_with('.') => match Type::parse(&word[1..]) {
                    Some(t) => {
                        ty = Some(t);
                        // `.ptr … .align n` speaks of what is pointed to.
                        if self.take_word(".ptr") {
                            while !matches!(self.peek(), Some(Token::Word(w)) if !w.starts_with('.')) {
                                match self.peek() {
                                    Some(Token::Word(_) | Token::Integer(_)) => self.at += 1,
                                    _ => return self.fail("a parameter name"),
                                }
                            }
                        }
                    }
                    None => return Err(syntax(line, format!("unknown type `{word}`"))),
                },
                _ => break word,
            }
        };
        let Some(ty) = ty else { return Err(syntax(line, "parameter without a type")) };
        let mut bytes = ty.bytes();
        if self.take('[') {
            bytes = bytes.checked_mul(self.small()?).ok_or_else(|| syntax(line, "parameter too large"))?;
            self.expect(']')?;
        }
        let align = align.unwrap_or(ty.bytes()).max(1);
        let start = offset.next_multiple_of(align);
        *offset = start + bytes;
        Ok(Parameter { name, ty, offset: start, bytes })
    }

    fn body_item(&mut self, body: &mut Body<'a>) -> Result<()> {
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
