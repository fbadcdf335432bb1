//! Members of a zip archive that are stored as they are.
//!
//! torch saves tensors as zip archives without compression, so a member is a range of the file. Every offset comes from
//! the file and is checked against it; a member's checksum is checked before its bytes are handed out. Compressed,
//! encrypted, split and zip64 archives are refused.

use std::path::Path;

use crate::error::{Error, Result};

/// Longest end record: 22 bytes and a comment of 65 535.
const LONGEST_END: usize = 22 + 65_535;

/// One stored file.
struct Member<'a> {
    name: &'a str,
    checksum: u32,
    length: usize,
    /// Of its local header.
    offset: usize,
}

/// An archive in memory.
pub(super) struct Archive<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    members: Vec<Member<'a>>,
}

impl<'a> Archive<'a> {
    /// Reads the directory of an archive; `path` is for error messages.
    pub fn open(path: &'a Path, bytes: &'a [u8]) -> Result<Archive<'a>> {
        let broken = |what: &str| Error::format(path, format!("is not a usable zip archive: {what}"));
        let tail = bytes.len().saturating_sub(LONGEST_END);
        let end = bytes[tail..].windows(4).rposition(|window| window == b"PK\x05\x06");
        let end = &bytes[tail + end.ok_or_else(|| broken("it has no end record; truncated?"))?..];
        let whole = half(end, 20).is_some_and(|comment| end.len() == 22 + usize::from(comment));
        let (true, Some(count), Some(start)) = (whole, half(end, 10), word(end, 16)) else {
            return Err(broken("its end record is cut"));
        };
        if count == u16::MAX || start == u32::MAX {
            return Err(broken("it is in zip64, which is for files above 4 GB"));
        }
        let mut members = Vec::with_capacity(usize::from(count));
        let mut at = start as usize;
        for _ in 0..count {
            let entry = bytes.get(at..).filter(|rest| rest.starts_with(b"PK\x01\x02"));
            let entry = entry.ok_or_else(|| broken("its directory is damaged"))?;
            let member = member(entry).ok_or_else(|| broken("its directory is cut"))?;
            let (member, entry_length) = member.map_err(|what| broken(&what))?;
            members.push(member);
            at += entry_length;
        }
        Ok(Archive { path, bytes, members })
    }

    /// The only member whose name ends in `/{name}`; an error if it is not there or its checksum is wrong.
    pub fn find(&self, name: &str) -> Result<&'a [u8]> {
        let broken = |what: String| Error::format(self.path, what);
        let mut found = self.named(name);
        let (Some(member), None) = (found.next(), found.next()) else {
            return Err(broken(format!("has no member {name}, or several; torch.save writes one")));
        };
        let header = self.bytes.get(member.offset..).filter(|rest| rest.starts_with(b"PK\x03\x04"));
        let data = header.and_then(|header| {
            let skip = 30 + usize::from(half(header, 26)?) + usize::from(half(header, 28)?);
            header.get(skip..)?.get(..member.length)
        });
        let data =
            data.ok_or_else(|| broken(format!("ends inside its member {}; truncated?", member.name)))?;
        let mut checksum = flate2::Crc::new();
        checksum.update(data);
        if checksum.sum() != member.checksum {
            return Err(broken(format!(
                "member {} has another checksum than it was written with",
                member.name
            )));
        }
        Ok(data)
    }

    /// Whether some member's name ends in `/{name}`.
    pub fn has(&self, name: &str) -> bool {
        self.named(name).next().is_some()
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Member<'a>> {
        let suffix = format!("/{name}");
        self.members.iter().filter(move |member| member.name.ends_with(&suffix))
    }
}

/// An entry of the directory and its length; `None` where it is cut, `Err` where it is not a stored file.
fn member(entry: &[u8]) -> Option<Result<(Member<'_>, usize), String>> {
    let (flags, method) = (half(entry, 8)?, half(entry, 10)?);
    let (packed, length) = (word(entry, 20)?, word(entry, 24)?);
    let name_length = usize::from(half(entry, 28)?);
    let entry_length = 46 + name_length + usize::from(half(entry, 30)?) + usize::from(half(entry, 32)?);
    let offset = word(entry, 42)?;
    let name = entry.get(46..46 + name_length)?;
    let Ok(name) = std::str::from_utf8(name) else { return Some(Err("a name is not UTF-8".into())) };
    if flags & 1 != 0 {
        return Some(Err(format!("{name} is encrypted")));
    }
    if method != 0 || packed != length {
        return Some(Err(format!("{name} is compressed; torch.save stores tensors as they are")));
    }
    if length == u32::MAX || offset == u32::MAX {
        return Some(Err(format!("{name} is in zip64, which is for files above 4 GB")));
    }
    let member =
        Member { name, checksum: word(entry, 16)?, length: length as usize, offset: offset as usize };
    Some(Ok((member, entry_length)))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
