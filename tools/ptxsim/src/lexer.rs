//! Splits PTX text into tokens. Every token keeps its line, so that every later error can name it.

use crate::error::{Error, Result};

/// One token; words are opcodes, registers, directives, labels and symbols, dots included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    /// Identifier, opcode with modifiers, register or directive.
    Word(&'a str),
    /// Integer literal, two's complement.
    Integer(u64),
    /// `0f…` literal, the bits.
    Single(u32),
    /// `0d…` literal, the bits.
    Double(u64),
    /// Quoted text without the quotes.
    Text(&'a str),
    /// Any other character.
    Mark(char),
}

/// A token and the line it stands on.
#[derive(Debug, Clone, Copy)]
pub struct Spanned<'a> {
    /// The token.
    pub token: Token<'a>,
    /// Line from 1.
    pub line: u32,
}

/// Tokens of a whole text.
///
/// # Errors
/// A literal that does not fit, an unclosed comment or string.
pub fn tokens(text: &str) -> Result<Vec<Spanned<'_>>> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4);
    let (mut at, mut line) = (0, 1u32);
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b' ' | b'\t' | b'\r' | 0 => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at);
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let Some(end) = text[at + 2..].find("*/") else {
                    return Err(syntax(line, "comment without end"));
                };
                let end = at + 2 + end + 2;
                line += bytes[at..end].iter().filter(|&&b| b == b'\n').count() as u32;
                at = end;
            }
            b'"' => {
                let Some(length) = text[at + 1..].find('"') else {
                    return Err(syntax(line, "string without end"));
                };
                let body = &text[at + 1..at + 1 + length];
                out.push(Spanned { token: Token::Text(body), line });
                line += body.matches('\n').count() as u32;
                at += length + 2;
            }
            b'0'..=b'9' => {
                let length = bytes[at..].iter().take_while(|b| b.is_ascii_alphanumeric()).count();
                out.push(Spanned { token: number(&text[at..at + length], line)?, line });
                at += length;
            }
            _ if starts_word(&bytes[at..]) => {
                let length = word_length(&bytes[at..]);
                out.push(Spanned { token: Token::Word(&text[at..at + length]), line });
                at += length;
            }
            _ if byte.is_ascii() => {
                out.push(Spanned { token: Token::Mark(byte as char), line });
                at += 1;
            }
            _ => return Err(syntax(line, "a character outside ASCII")),
        }
    }
    Ok(out)
}

pub(crate) fn syntax(line: u32, message: impl Into<String>) -> Error {
    Error::Syntax { line, message: message.into() }
}

fn starts_word(rest: &[u8]) -> bool {
    let letter = |b: &u8| b.is_ascii_alphabetic() || matches!(b, b'_' | b'$' | b'%');
    letter(&rest[0]) || (rest[0] == b'.' && rest.get(1).is_some_and(letter))
}

// A dot or a double colon belongs to the word only when a name goes on behind it: `shared::cta`, but `label:`.
fn word_length(rest: &[u8]) -> usize {
    let name =
        |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%'));
    let mut length = 1;
    loop {
        if name(rest.get(length)) {
            length += 1;
        } else if rest.get(length) == Some(&b'.') && name(rest.get(length + 1)) {
            length += 2;
        } else if rest.get(length..length + 2) == Some(b"::") && name(rest.get(length + 2)) {
            length += 3;
        } else {
            return length;
        }
    }
}

fn number(text: &str, line: u32) -> Result<Token<'_>> {
    let bad = || syntax(line, format!("`{text}` is not a number"));
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0f")
        && hex.len() == 8
    {
        return u32::from_str_radix(hex, 16).map(Token::Single).map_err(|_| bad());
    }
    if let Some(hex) = lower.strip_prefix("0d")
        && hex.len() == 16
    {
        return u64::from_str_radix(hex, 16).map(Token::Double).map_err(|_| bad());
    }
    let body = lower.strip_suffix('u').unwrap_or(&lower);
    let (digits, radix) = if let Some(hex) = body.strip_prefix("0x") {
        (hex, 16)
    } else if let Some(binary) = body.strip_prefix("0b") {
        (binary, 2)
    } else if body.len() > 1 && body.starts_with('0') {
        (&body[1..], 8)
    } else {
        (body, 10)
    };
    u64::from_str_radix(digits, radix).map(Token::Integer).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Token<'_>> {
        tokens(text).unwrap().into_iter().map(|s| s.token).collect()
    }

    #[test]
    fn opcodes_registers_and_literals() {
        assert_eq!(
            words(
                "@!%p1 ld.global.L2::128B.f32 %f1, [%rd4+-8]; // tail\n$L_1: 0f3F800000 0x10 017 5U 0d3FF0000000000000"
            ),
            vec![
                Token::Mark('@'),
                Token::Mark('!'),
                Token::Word("%p1"),
                Token::Word("ld.global.L2::128B.f32"),
                Token::Word("%f1"),
                Token::Mark(','),
                Token::Mark('['),
                Token::Word("%rd4"),
                Token::Mark('+'),
                Token::Mark('-'),
                Token::Integer(8),
                Token::Mark(']'),
                Token::Mark(';'),
                Token::Word("$L_1"),
                Token::Mark(':'),
                Token::Single(0x3f80_0000),
                Token::Integer(16),
                Token::Integer(15),
                Token::Integer(5),
                Token::Double(0x3ff0_0000_0000_0000),
            ]
        );
    }

    #[test]
    fn lines_survive_comments() {
        let all = tokens("a /* 1\n2\n3 */ b\nc").unwrap();
        assert_eq!(all.iter().map(|s| s.line).collect::<Vec<_>>(), [1, 3, 4]);
        assert!(tokens("/* open").is_err());
        assert!(tokens("\"open").is_err());
        assert!(tokens("0xzz").is_err());
    }
}
