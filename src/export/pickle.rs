//! The few pickle instructions that describe a saved tensor, read as data.
//!
//! A pickle is a program for a stack machine that may import and call anything. Here nothing is imported and nothing
//! is called: a global stays a name, a call stays the pair of what was to be called and its arguments. What does not
//! belong to a tensor is an error. Values live in one list and name each other by index, so that no input can nest
//! them deeply enough to exhaust the stack.

/// A value of the pickle; indices are into [`Pickle::values`].
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Nothing,
    Flag(bool),
    Number(i64),
    Text(String),
    /// "module name".
    Global(String),
    /// Tuples and lists.
    Sequence(Vec<usize>),
    /// Dictionaries; what is in them is of no use here.
    Dictionary,
    /// Reference to a storage, as torch writes it.
    Persistent(usize),
    /// A call that is not made: callable, arguments.
    Call(usize, usize),
}

/// A pickle's values.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// Index of the result.
    pub root: usize,
}

impl Pickle {
    pub fn get(&self, index: usize) -> &Value {
        &self.values[index]
    }

    pub fn text(&self, index: usize) -> Option<&str> {
        if let Value::Text(text) = self.get(index) { Some(text) } else { None }
    }

    /// A number that is not negative.
    pub fn size(&self, index: usize) -> Option<usize> {
        if let Value::Number(number) = self.get(index) { usize::try_from(*number).ok() } else { None }
    }

    /// Indices of the items of a tuple or list.
    pub fn sequence(&self, index: usize) -> Option<&[usize]> {
        if let Value::Sequence(items) = self.get(index) { Some(items) } else { None }
    }

    pub fn sizes(&self, index: usize) -> Option<Vec<usize>> {
        self.sequence(index)?.iter().map(|&item| self.size(item)).collect()
    }

    /// A call of a name: the name, and indices of the arguments.
    pub fn call(&self, index: usize) -> Option<(&str, &[usize])> {
        let Value::Call(callable, arguments) = *self.get(index) else { return None };
        let Value::Global(name) = self.get(callable) else { return None };
        Some((name, self.sequence(arguments)?))
    }
}

/// The machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: std::collections::HashMap<u32, usize>,
}

/// Reads a pickle; the error says what it holds that no tensor has.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Default::default(),
    };
    loop {
        let at = machine.at;
        match machine.step() {
            Some(Ok(None)) => {}
            Some(Ok(Some(root))) => return Ok(Pickle { values: machine.values, root }),
            Some(Err(instruction)) => {
                return Err(format!(
                    "instruction {instruction:#04x} at byte {at} is not one that describes a tensor"
                ));
            }
            None => return Err(format!("it breaks off or contradicts itself at byte {at}")),
        }
    }
}

impl<'a> Machine<'a> {
    /// Runs one instruction: the result at the end; the instruction's number where it is not known; `None` where the
    /// bytes or the stack do not suffice.
    #[allow(clippy::type_complexity)]
    fn step(&mut self) -> Option<Result<Option<usize>, u8>> {
        let [instruction] = self.take::<1>()?;
        match instruction {
            // PROTO, FRAME
            0x80 => drop(self.take::<1>()?),
            0x95 => drop(self.take::<8>()?),
            b'.' => return Some(Ok(Some(self.stack.pop()?))),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::Nothing),
            0x88 => self.push(Value::Flag(true)),
            0x89 => self.push(Value::Flag(false)),
            b'K' => {
                let [number] = self.take::<1>()?;
                self.push(Value::Number(i64::from(number)));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.take()?);
                self.push(Value::Number(i64::from(number)));
            }
            b'J' => {
                let number = i32::from_le_bytes(self.take()?);
                self.push(Value::Number(i64::from(number)));
            }
            // LONG1
            0x8a => {
                let [length] = self.take::<1>()?;
                let bytes = self.slice(usize::from(length))?;
                let mut number = [if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 }; 8];
                number.get_mut(..bytes.len())?.copy_from_slice(bytes);
                self.push(Value::Number(i64::from_le_bytes(number)));
            }
            b'X' => {
                let length = u32::from_le_bytes(self.take()?);
                self.text(length as usize)?;
            }
            // SHORT_BINUNICODE
            0x8c => {
                let [length] = self.take::<1>()?;
                self.text(usize::from(length))?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module} {name}")));
            }
            // STACK_GLOBAL
            0x93 => {
                let (name, module) = (self.stack.pop()?, self.stack.pop()?);
                let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name])
                else {
                    return None;
                };
                let global = Value::Global(format!("{module} {name}"));
                self.push(global);
            }
            b')' | b']' => self.push(Value::Sequence(Vec::new())),
            b'}' => self.push(Value::Dictionary),
            // TUPLE1, TUPLE2, TUPLE3
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(instruction - 0x84))?;
                let items = self.stack.split_off(start);
                self.push(Value::Sequence(items));
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Sequence(items));
            }
            // APPEND, APPENDS
            b'a' | b'e' => {
                let items = if instruction == b'a' { vec![self.stack.pop()?] } else { self.since_mark()? };
                let Value::Sequence(list) = &mut self.values[*self.stack.last()?] else { return None };
                list.extend(items);
            }
            // SETITEM, SETITEMS, BUILD: nothing in a dictionary or a state says anything about the numbers.
            b's' => drop((self.stack.pop()?, self.stack.pop()?)),
            b'u' => drop(self.since_mark()?),
            b'b' => drop(self.stack.pop()?),
            b'Q' => {
                let id = self.stack.pop()?;
                self.push(Value::Persistent(id));
            }
            b'R' => {
                let (arguments, callable) = (self.stack.pop()?, self.stack.pop()?);
                self.push(Value::Call(callable, arguments));
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' | b'r' | 0x94 => {
                let number = match instruction {
                    b'q' => u32::from(self.take::<1>()?[0]),
                    b'r' => u32::from_le_bytes(self.take()?),
                    _ => self.memo.len() as u32,
                };
                self.memo.insert(number, *self.stack.last()?);
            }
            b'h' => {
                let [number] = self.take::<1>()?;
                self.stack.push(*self.memo.get(&u32::from(number))?);
            }
            b'j' => {
                let number = u32::from_le_bytes(self.take()?);
                self.stack.push(*self.memo.get(&number)?);
            }
            unknown => return Some(Err(unknown)),
        }
        Some(Ok(None))
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn since_mark(&mut self) -> Option<Vec<usize>> {
        let mark = self.marks.pop()?;
        (mark <= self.stack.len()).then(|| self.stack.split_off(mark))
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let found = self.bytes.get(self.at..)?.get(..length)?;
        self.at += length;
        Some(found)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.first_chunk().copied()
    }

    fn text(&mut self, length: usize) -> Option<()> {
        let text = std::str::from_utf8(self.slice(length)?).ok()?.to_string();
        self.push(Value::Text(text));
        Some(())
    }

    fn line(&mut self) -> Option<&'a str> {
        let length = self.bytes.get(self.at..)?.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(self.slice(length)?).ok()?;
        self.at += 1;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_called_and_nesting_costs_no_stack() {
        // os.system("x"): a name and its arguments, never a call.
        let found = read(b"\x80\x02cos\nsystem\nq\x00X\x01\x00\x00\x00x\x85R.").unwrap();
        let Value::Call(callable, _) = *found.get(found.root) else { panic!("{found:?}") };
        assert_eq!(found.get(callable), &Value::Global("os system".into()));
        let mut deep = b"\x80\x02N".to_vec();
        deep.extend(std::iter::repeat_n(0x85, 1_000_000));
        deep.push(b'.');
        drop(read(&deep).unwrap());
    }

    #[test]
    fn what_is_no_tensor_is_named() {
        assert!(read(b"\x80\x02i").unwrap_err().contains("0x69 at byte 2"));
        assert!(read(b"\x80\x02K").unwrap_err().contains("byte 2"));
        assert!(read(b"R").unwrap_err().contains("byte 0"));
        assert!(read(b"").unwrap_err().contains("byte 0"));
    }
}
