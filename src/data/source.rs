//! Finding and reading input files.
//!
//! Every reader goes through here so that compressed files, byte order marks, bad UTF-8 and unusable rows are
//! treated alike. A file is read whole: the largest set this engine is meant for is a few hundred megabytes.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A row that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Line of the file, counted from 1 (for SQuAD the question, counted from 1).
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// What reading a file gave: how many rows are usable and which are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// The file.
    pub path: PathBuf,
    /// "line" or "question": what [`BadRow::line`] counts.
    pub unit: &'static str,
    /// Usable rows.
    pub rows: usize,
    /// Every row that was left out, in file order.
    pub bad: Vec<BadRow>,
}

/// How many bad rows the display of a [`ReadReport`] names.
const SHOWN_BAD_ROWS: usize = 5;

impl ReadReport {
    /// An empty report about the lines of `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        ReadReport { path: path.as_ref().to_path_buf(), unit: "line", rows: 0, bad: Vec::new() }
    }

    /// Records a row that was left out.
    pub fn reject(&mut self, line: usize, reason: impl Into<String>) {
        self.bad.push(BadRow { line, reason: reason.into() });
    }

    /// Turns "nothing usable" into an error that names the file, the first bad rows and their lines.
    pub fn require_rows(&self) -> Result<()> {
        if self.rows > 0 {
            return Ok(());
        }
        if self.bad.is_empty() {
            return Err(Error::format(&self.path, "the file holds no rows"));
        }
        Err(Error::format(&self.path, format!("no usable row; {}", self.describe_bad())))
    }

    /// An error when any row was left out; for callers that want all of a file or nothing.
    pub fn require_clean(&self) -> Result<()> {
        if self.bad.is_empty() {
            return Ok(());
        }
        Err(Error::format(&self.path, self.describe_bad()))
    }

    fn describe_bad(&self) -> String {
        let mut text = format!("{} bad {}(s): ", self.bad.len(), self.unit);
        for (i, bad) in self.bad.iter().take(SHOWN_BAD_ROWS).enumerate() {
            if i > 0 {
                text.push_str("; ");
            }
            text.push_str(&format!("{} {}: {}", self.unit, bad.line, bad.reason));
        }
        if self.bad.len() > SHOWN_BAD_ROWS {
            text.push_str(&format!("; and {} more", self.bad.len() - SHOWN_BAD_ROWS));
        }
        text
    }
}

impl fmt::Display for ReadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows", self.path.display(), self.rows)?;
        if !self.bad.is_empty() {
            write!(f, ", left out {}", self.describe_bad())?;
        }
        Ok(())
    }
}

/// The bytes of a file, decompressed when its name ends in `.gz`.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read; [`Error::Format`] when the gzip stream is damaged or cut short.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let stored = std::fs::read(path).map_err(Error::io(path, "reading"))?;
    if path.extension().is_none_or(|e| e != "gz") {
        return Ok(stored);
    }
    let mut bytes = Vec::with_capacity(stored.len() * 4);
    flate2::read::MultiGzDecoder::new(stored.as_slice()).read_to_end(&mut bytes).map_err(|e| {
        Error::format(path, format!("damaged gzip stream after {} unpacked bytes: {e}", bytes.len()))
    })?;
    Ok(bytes)
}

/// The text of a UTF-8 file (`.gz` accepted), without a leading byte order mark.
///
/// # Errors
/// As [`read_bytes`]; [`Error::Format`] naming the line of the first byte that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = without_byte_order_mark(read_bytes(path)?);
    String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..good].iter().filter(|b| **b == b'\n').count();
        Error::format(path, format!("line {line}: not valid UTF-8"))
    })
}

/// Removes a UTF-8 byte order mark.
pub fn without_byte_order_mark(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.starts_with(&[0xEF, 0xBB, 0xBF]) {
        bytes.drain(..3);
    }
    bytes
}

/// The lines of `bytes` without their line ends (`\n` or `\r\n`); a last line end does not open another line.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let count = if bytes.is_empty() { 0 } else { usize::MAX };
    body.split(|b| *b == b'\n').take(count).map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// The first of `names` that exists in `directory`, each also tried with `.gz` appended.
pub fn find_file(directory: &Path, names: &[String]) -> Option<PathBuf> {
    names
        .iter()
        .flat_map(|name| [name.clone(), format!("{name}.gz")])
        .map(|name| directory.join(name))
        .find(|p| p.is_file())
}

/// The extension that says what a file holds, a closing `.gz` not counted; lower case.
pub fn content_extension(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.rsplit_once('.').map(|(_, e)| e.to_string()).unwrap_or_default()
}
