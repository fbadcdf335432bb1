//! One-dimensional `.npy` files of bytes (numpy's format, versions 1 to 3).

use std::path::Path;

use crate::error::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";

/// The file `numpy.save` writes of a `uint8` array of this content.
pub fn encode(content: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}", content.len());
    // The content starts on a multiple of 64 bytes; a newline ends the header.
    let fixed = MAGIC.len() + 4;
    let padded = (fixed + header.len() + 1).next_multiple_of(64) - fixed;
    header.extend(std::iter::repeat_n(' ', padded - 1 - header.len()));
    header.push('\n');
    let mut file = Vec::with_capacity(fixed + padded + content.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&[1, 0]);
    file.extend_from_slice(&(padded as u16).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(content);
    file
}

/// Whether a file starts as `.npy` files do.
pub fn is_npy(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

/// The content of a file with a one-dimensional array of bytes; `path` is for error messages.
pub fn decode<'a>(path: &Path, file: &'a [u8]) -> Result<&'a [u8]> {
    let broken = |what: String| Error::format(path, format!("is not a .npy file of packed bits: {what}"));
    let rest = file.strip_prefix(MAGIC).ok_or_else(|| broken("it does not start as one".into()))?;
    let split = match rest {
        [1, _, a, b, rest @ ..] => Some((usize::from(u16::from_le_bytes([*a, *b])), rest)),
        [2 | 3, _, a, b, c, d, rest @ ..] => Some((u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest)),
        _ => None,
    };
    let Some((header, content)) = split.and_then(|(length, rest)| rest.split_at_checked(length)) else {
        return Err(broken("its header is cut".into()));
    };
    let header = String::from_utf8_lossy(header);
    let field = |name: &str| {
        let (_, after) = header.split_once(&format!("'{name}':"))?;
        Some(after.trim_start())
    };
    let kind = field("descr").unwrap_or("");
    if !["'|u1'", "'u1'", "'<u1'"].iter().any(|known| kind.starts_with(known)) {
        let kind = kind.split(',').next().unwrap_or("");
        return Err(broken(format!("its elements are {kind}, not bytes ('|u1')")));
    }
    let shape = field("shape").and_then(|shape| shape.strip_prefix('(')?.split_once(')'));
    let length = shape.and_then(|(shape, _)| shape.trim().trim_end_matches(',').parse::<usize>().ok());
    let Some(length) = length else {
        return Err(broken("it does not hold a one-dimensional array".into()));
    };
    if content.len() != length {
        let message = format!("it claims {length} bytes and holds {}; truncated?", content.len());
        return Err(broken(message));
    }
    Ok(content)
}
