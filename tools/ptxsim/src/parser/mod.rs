//! Reads tokens into a [`ModuleText`]: scopes and register names are resolved here, meaning is the decoder's work.
//!
//! This file reads what stands outside a kernel's braces, and variables, which may stand on either side.

mod body;

use std::collections::HashMap;

use crate::error::Result;
use crate::lexer::{Spanned, Token, syntax, tokens};
use crate::syntax::{KernelText, ModuleText, Parameter, Variable};
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
        self.body(kernel)
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
}
