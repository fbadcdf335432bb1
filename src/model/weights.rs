//! Reading safetensors files that nobody vouches for, and writing them atomically.
//!
//! The header is checked here, tensor by tensor, before anything is allocated or read: offsets against the file,
//! sizes against shape and type, with overflow checks. Values are converted to f32 as they are copied to their
//! place; a value that is not finite is an error that says where it is.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde_json::{Map, Value};

use super::sparse;
use super::stored::{self, Saved};
use crate::error::{Error, Result};

/// Largest header accepted, in bytes (the format's own limit).
const MAX_HEADER: u64 = 100_000_000;

/// Element types that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    F32,
    F16,
    Bf16,
    F64,
    /// Anything else: recognised, so that stray buffers do not hinder, but not readable as weights.
    Other,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct Tensor {
    file: usize,
    kind: Kind,
    type_name: String,
    /// Shape as stored.
    pub shape: Vec<usize>,
    start: usize,
    end: usize,
    /// Bytes of the mask of a sparse matrix, whose values `start .. end` are.
    mask: Option<Range<usize>>,
}

impl Tensor {
    /// Its bytes within the file.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// The sparse matrix of which these are the values.
    pub(super) fn expanded(self, shape: Vec<usize>, mask: Tensor) -> Tensor {
        Tensor { shape, mask: Some(mask.range()), ..self }
    }
}

/// Bytes of a tensor that are in memory at once while it is copied, about.
const PIECE: usize = 1 << 20;

/// Tensors of one or several files, mapped into memory. Values are copied to their place piece by piece, and the
/// pages of a piece are given back: resident pages of a mapping count as memory of the process.
#[derive(Debug)]
pub struct TensorFiles {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Tensor>,
}

impl TensorFiles {
    /// Opens `model.safetensors` of a model directory, the shards its index names, or its sparse file.
    pub fn open(directory: &Path) -> Result<TensorFiles> {
        let mut files = TensorFiles { files: Vec::new(), tensors: BTreeMap::new() };
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        let sparse = directory.join(sparse::FILE_NAME);
        if single.is_file() {
            files.add(&single)?;
        } else if index.is_file() {
            for shard in shards(&index)? {
                files.add(&directory.join(shard))?;
            }
        } else if sparse.is_file() {
            files.add(&sparse)?;
        } else if directory.join("pytorch_model.bin").exists() {
            let message = "holds pytorch_model.bin only, a pickle, which is not read here; convert it once with \
                           transformers: AutoModel….from_pretrained(dir).save_pretrained(dir)";
            return Err(Error::format(directory, message));
        } else {
            return Err(Error::format(directory, "holds neither model.safetensors nor an index of shards"));
        }
        Ok(files)
    }

    /// Opens one file.
    pub fn open_file(path: &Path) -> Result<TensorFiles> {
        let mut files = TensorFiles { files: Vec::new(), tensors: BTreeMap::new() };
        files.add(path)?;
        Ok(files)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(Error::io(path, "opening"))?;
        // SAFETY: the mapping is read-only. Another process that truncates the file while it is mapped could make a
        // read fault; checkpoints are replaced by renaming, which leaves the mapped inode whole.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "mapping"))?;
        let number = self.files.len();
        for (name, tensor) in header(path, &map, number)? {
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(Error::format(path, format!("tensor {name} is in another shard as well")));
            }
        }
        self.files.push((path.to_path_buf(), map));
        Ok(())
    }

    /// All tensors by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Looks a tensor up.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// File a tensor is in.
    pub fn path_of(&self, tensor: &Tensor) -> &Path {
        &self.files[tensor.file].0
    }

    /// Copies tensor `name`, seen as rows of `cols` elements, to rows of `out` that start every `ld` elements.
    /// Fails on types that are not floating point and on values that are not finite.
    pub fn copy_rows(&self, name: &str, cols: usize, ld: usize, out: &mut [f32]) -> Result<()> {
        let tensor = &self.tensors[name];
        let (path, map) = &self.files[tensor.file];
        let width = match tensor.kind {
            Kind::F16 | Kind::Bf16 => 2,
            Kind::F32 => 4,
            Kind::F64 => 8,
            Kind::Other => {
                let message =
                    format!("tensor {name} has type {}; weights are F32, F16, BF16 or F64", tensor.type_name);
                return Err(Error::format(path, message));
            }
        };
        if let Some(mask) = &tensor.mask {
            let (values, mask) = (&map[tensor.range()], &map[mask.clone()]);
            match tensor.kind {
                Kind::F16 => {
                    sparse::expand(values, mask, cols, ld, out, |b| half::f16::from_le_bytes(b).to_f32())
                }
                Kind::Bf16 => {
                    sparse::expand(values, mask, cols, ld, out, |b| half::bf16::from_le_bytes(b).to_f32())
                }
                Kind::F64 => sparse::expand(values, mask, cols, ld, out, |b| f64::from_le_bytes(b) as f32),
                _ => sparse::expand(values, mask, cols, ld, out, f32::from_le_bytes),
            }
            #[cfg(unix)]
            give_back(map);
            return check_finite(name, path, cols, ld, out);
        }
        let rows_at_once = (PIECE / (cols * width).max(1)).max(1);
        let pieces = map[tensor.start..tensor.end].chunks((rows_at_once * cols * width).max(1));
        for (piece, out) in pieces.zip(out.chunks_mut(rows_at_once * ld.max(1))) {
            match tensor.kind {
                Kind::F16 => convert(piece, cols, ld, out, |b| half::f16::from_le_bytes(b).to_f32()),
                Kind::Bf16 => convert(piece, cols, ld, out, |b| half::bf16::from_le_bytes(b).to_f32()),
                Kind::F64 => convert(piece, cols, ld, out, |b| f64::from_le_bytes(b) as f32),
                _ => convert(piece, cols, ld, out, f32::from_le_bytes),
            }
            #[cfg(unix)]
            give_back(map);
        }
        check_finite(name, path, cols, ld, out)
    }
}

fn check_finite(name: &str, path: &Path, cols: usize, ld: usize, out: &[f32]) -> Result<()> {
    for (row, values) in out.chunks(ld.max(1)).enumerate() {
        if let Some(column) = values.iter().take(cols).position(|x| !x.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("tensor {name}"),
                value: f64::from(values[column]),
                place: format!("at row {row}, column {column} of {}", path.display()),
            });
        }
    }
    Ok(())
}

/// Takes the pages of a mapping out of this process's memory. All of them: a fault maps neighbours of its page too.
#[cfg(unix)]
fn give_back(map: &Mmap) {
    // SAFETY: the mapping is of a file and read-only, so no page holds anything that the file does not: a page that
    // is dropped, even while it is borrowed here or in another thread, is read again on demand with the same bytes.
    let advised = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    // Where the advice is refused, the pages stay until the system wants them.
    advised.unwrap_or_default();
}

fn convert<const N: usize>(
    bytes: &[u8],
    cols: usize,
    ld: usize,
    out: &mut [f32],
    to: impl Fn([u8; N]) -> f32,
) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (row, from) in out.chunks_mut(ld.max(1)).zip(elements.chunks(cols.max(1))) {
        for (value, bytes) in row.iter_mut().zip(from) {
            *value = to(*bytes);
        }
    }
}

/// Parses and checks the header of a mapped file.
fn header(path: &Path, map: &[u8], file: usize) -> Result<Vec<(String, Tensor)>> {
    let broken =
        |message: String| Error::format(path, format!("is not a usable safetensors file: {message}"));
    let Some((length, rest)) = map.split_first_chunk::<8>() else {
        return Err(broken(format!("it has {} bytes", map.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        let message = format!("its header claims {length} bytes, the file has {} after it", rest.len());
        return Err(broken(message));
    }
    let (header, data) = rest.split_at(length as usize);
    let header: Map<String, Value> =
        serde_json::from_slice(header).map_err(|error| broken(format!("its header: {error}")))?;
    let mut tensors = Vec::with_capacity(header.len());
    let mut own = None;
    for (name, entry) in header {
        if name == "__metadata__" {
            own = entry.get("secateur").and_then(Value::as_str).map(str::to_string);
            continue;
        }
        let tensor =
            tensor(&entry, file).ok_or_else(|| broken(format!("tensor {name} has a broken header")))?;
        if tensor.start > tensor.end || tensor.end > data.len() {
            let Tensor { start, end, .. } = tensor;
            let message =
                format!("tensor {name} claims bytes {start} to {end} of {}; truncated?", data.len());
            return Err(broken(message));
        }
        let size = element_bits(&tensor.type_name)
            .and_then(|bits| tensor.shape.iter().try_fold(bits, |size, &extent| size.checked_mul(extent)));
        if size.is_some_and(|bits| bits.div_ceil(8) != tensor.end - tensor.start)
            || (size.is_none() && tensor.kind != Kind::Other)
        {
            let message = format!(
                "tensor {name} of shape {:?} and type {} has {} bytes",
                tensor.shape,
                tensor.type_name,
                tensor.end - tensor.start
            );
            return Err(broken(message));
        }
        let base = 8 + length as usize;
        tensors.push((name, Tensor { start: tensor.start + base, end: tensor.end + base, ..tensor }));
    }
    match own {
        Some(metadata) => sparse::join(path, tensors, map, &metadata),
        None => Ok(tensors),
    }
}

fn tensor(entry: &Value, file: usize) -> Option<Tensor> {
    let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    let type_name = entry.get("dtype")?.as_str()?.to_string();
    let shape = entry.get("shape")?.as_array()?.iter().map(size).collect::<Option<Vec<_>>>()?;
    let [start, end] = entry.get("data_offsets")?.as_array()?.as_slice() else { return None };
    let kind = match type_name.as_str() {
        "F32" => Kind::F32,
        "F16" => Kind::F16,
        "BF16" => Kind::Bf16,
        "F64" => Kind::F64,
        _ => Kind::Other,
    };
    Some(Tensor { file, kind, type_name, shape, start: size(start)?, end: size(end)?, mask: None })
}

fn element_bits(type_name: &str) -> Option<usize> {
    Some(match type_name {
        "F64" | "I64" | "U64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "BOOL" | "I8" | "U8" => 8,
        _ => return None,
    })
}

/// File names in an index, each once, in order.
fn shards(index: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(index).map_err(Error::io(index, "reading"))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| Error::format(index, format!("is not valid JSON: {error}")))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let names = map.map(|map| map.values().map(Value::as_str).collect::<Option<Vec<_>>>());
    let Some(Some(names)) = names else {
        return Err(Error::format(index, "has no \"weight_map\" from tensor names to file names"));
    };
    let mut shards: Vec<String> = names.into_iter().map(str::to_string).collect();
    shards.sort();
    shards.dedup();
    // A shard is a file beside its index; anything else would let a checkpoint read elsewhere.
    if let Some(name) = shards.iter().find(|name| Path::new(name).file_name() != Some(name.as_str().as_ref()))
    {
        return Err(Error::format(
            index,
            format!("names the shard {name:?}, which is not a plain file name"),
        ));
    }
    Ok(shards)
}

/// Writes tensors in the format's own order, under a temporary name that is renamed when all is on disk.
/// One field of metadata: several would be in no certain order.
pub(super) fn write(path: &Path, tensors: &[(String, Saved)], (key, value): (&str, &str)) -> Result<()> {
    let metadata = HashMap::from([(key.to_string(), value.to_string())]);
    atomically(path, |temporary| {
        let views = tensors.iter().map(|(name, saved)| (name.as_str(), stored::Tensor::new(saved)));
        safetensors::serialize_to_file(views, Some(metadata), temporary)
            .map_err(|error| Error::format(temporary, format!("could not be written: {error}")))
    })
}

/// Lets `write` fill a temporary file beside `path`, flushes it to disk and renames it.
pub(crate) fn atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let finish = || {
        write(&temporary)?;
        let file = File::open(&temporary).map_err(Error::io(&temporary, "opening"))?;
        file.sync_all().map_err(Error::io(&temporary, "flushing"))?;
        std::fs::rename(&temporary, path).map_err(Error::io(path, "renaming"))
    };
    finish().inspect_err(|_| {
        // The first error is the one to report; a left-over temporary file is harmless.
        let _ = std::fs::remove_file(&temporary);
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Bytes of the mapping of `path` that are resident in this process.
    fn resident(path: &Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let kilobytes = lines.find_map(|line| line.strip_prefix("Rss:")).expect("the file is mapped");
        1024 * kilobytes.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
    }

    #[test]
    fn copied_tensors_leave_no_pages_of_the_file_resident() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let values: Vec<f32> = (0..1 << 20).map(|i| i as f32).collect();
        let (shape, stored) = (vec![1 << 12, 1 << 8], Default::default());
        let rows = stored::Rows { values: &values, shape, cols: 1 << 8, ld: 1 << 8, stored };
        write(&path, &[("weight".to_string(), Saved::Rows(rows))], ("format", "pt")).unwrap();
        let files = TensorFiles::open_file(&path).unwrap();
        assert!(resident(&path) > 0, "the header was read");
        let mut copied = vec![0.0; values.len()];
        files.copy_rows("weight", 1 << 8, 1 << 8, &mut copied).unwrap();
        assert!(copied == values);
        assert_eq!(resident(&path), 0);
    }
}
