//! Tensors saved by `torch.save`, read without torch and without executing anything.
//!
//! The file is a zip archive: `data.pkl` says type, shape and strides of each tensor, `data/K` holds the numbers of
//! storage K in the byte order that `byteorder` names (little where it is absent). One floating-point tensor, or a
//! list of them, is what a mask file holds; anything else is refused.

use std::path::Path;

use super::pickle::{self, Pickle, Value};
use super::zip::Archive;
use crate::error::{Error, Result};

/// Largest file accepted: masks are kilobytes.
const MAX_BYTES: u64 = 1 << 30;

/// A matrix of numbers; vectors have one row.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedTensor {
    /// Shape as saved.
    pub shape: Vec<usize>,
    /// The numbers, row-major.
    pub values: Vec<f32>,
}

/// The tensors of a file: one, or those of the list it holds. Fails on other content, on strides that leave the
/// storage and on values that are not finite.
pub fn read(path: &Path) -> Result<Vec<SavedTensor>> {
    let length = std::fs::metadata(path).map_err(Error::io(path, "reading"))?.len();
    if length > MAX_BYTES {
        return Err(Error::format(path, format!("has {length} bytes; masks are not that large")));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path, "reading"))?;
    if !bytes.starts_with(b"PK") {
        let message =
            "is not a zip archive, as torch.save has written since version 1.6; load it there and save again";
        return Err(Error::format(path, message));
    }
    let archive = Archive::open(path, &bytes)?;
    if archive.has("byteorder") && archive.find("byteorder")? != b"little" {
        return Err(Error::format(path, "was saved on a machine of another byte order"));
    }
    let pickle = pickle::read(archive.find("data.pkl")?)
        .map_err(|what| Error::format(path, format!("its data.pkl is not a tensor's: {what}")))?;
    let roots = match pickle.get(pickle.root) {
        Value::Sequence(items) if !items.is_empty() => items.clone(),
        _ => vec![pickle.root],
    };
    roots.iter().map(|&root| tensor(path, &archive, &pickle, root)).collect()
}

fn tensor(path: &Path, archive: &Archive, pickle: &Pickle, root: usize) -> Result<SavedTensor> {
    let Description { kind, key, offset, shape, strides } = describe(pickle, root)
        .ok_or_else(|| Error::format(path, "holds something else than a tensor or a list of tensors"))?;
    let width = match kind.as_str() {
        "HalfStorage" | "BFloat16Storage" => 2,
        "FloatStorage" => 4,
        "DoubleStorage" => 8,
        _ => {
            let message = format!("holds numbers of torch.{kind}; masks are float, double, half or bfloat16");
            return Err(Error::format(path, message));
        }
    };
    let storage = archive.find(&format!("data/{key}"))?;
    let available = storage.len() / width;
    let count = shape.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent));
    let last = shape.iter().zip(&strides).try_fold(offset, |at, (&extent, &stride)| {
        at.checked_add(extent.saturating_sub(1).checked_mul(stride)?)
    });
    let inside = count.filter(|&count| count <= available).zip(last.filter(|&last| last < available));
    let Some((count, _)) = inside.filter(|_| shape.len() == strides.len()) else {
        let message = format!("a tensor of shape {shape:?} does not fit its storage of {available} numbers");
        return Err(Error::format(path, message));
    };
    let mut values = Vec::with_capacity(count);
    for index in 0..count {
        let (mut rest, mut at) = (index, offset);
        for (&extent, &stride) in shape.iter().zip(&strides).rev() {
            at += rest % extent * stride;
            rest /= extent;
        }
        let value = number(&kind, &storage[at * width..(at + 1) * width]);
        if !value.is_finite() {
            let place = format!("at element {index} of {}", path.display());
            return Err(Error::NotFinite { what: "a saved tensor".into(), value: f64::from(value), place });
        }
        values.push(value);
    }
    Ok(SavedTensor { shape, values })
}

fn number(kind: &str, bytes: &[u8]) -> f32 {
    match *bytes {
        [a, b] if kind == "HalfStorage" => half::f16::from_le_bytes([a, b]).to_f32(),
        [a, b] => half::bf16::from_le_bytes([a, b]).to_f32(),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
        _ => unreachable!("the caller cuts numbers to their width"),
    }
}

/// What the pickle says about a tensor.
struct Description {
    kind: String,
    key: String,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

fn describe(pickle: &Pickle, root: usize) -> Option<Description> {
    let (mut name, mut arguments) = pickle.call(root)?;
    if name == "torch._utils _rebuild_parameter" {
        // A parameter is a tensor with a flag.
        (name, arguments) = pickle.call(*arguments.first()?)?;
    }
    let ("torch._utils _rebuild_tensor_v2", [storage, offset, shape, strides, ..]) = (name, arguments) else {
        return None;
    };
    let Value::Persistent(id) = *pickle.get(*storage) else { return None };
    let [tag, kind, key, ..] = *pickle.sequence(id)? else { return None };
    let Value::Global(kind) = pickle.get(kind) else { return None };
    (pickle.text(tag)? == "storage").then_some(Description {
        kind: kind.strip_prefix("torch ")?.to_string(),
        key: pickle.text(key)?.to_string(),
        offset: pickle.size(*offset)?,
        shape: pickle.sizes(*shape)?,
        strides: pickle.sizes(*strides)?,
    })
}
