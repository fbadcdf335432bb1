//! Reading reference tensors.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// One safetensors file, widened to f64 on reading.
pub struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Tensors {
    /// Reads the file; panics when it cannot be read.
    pub fn read(path: &Path) -> Tensors {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Tensors { path: path.to_path_buf(), bytes }
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.parsed().names().iter().map(|name| name.to_string()).collect();
        names.sort();
        names
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.parsed().tensor(name).is_ok()
    }

    /// Whether tensor `name` is stored in f32.
    pub fn is_f32(&self, name: &str) -> bool {
        self.view(name, |view| view.dtype() == Dtype::F32)
    }

    /// Shape of tensor `name`.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.view(name, |view| view.shape().to_vec())
    }

    /// Elements of tensor `name`, whatever its type, as f64.
    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.view(name, |view| {
            let bytes = view.data();
            match view.dtype() {
                Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
                Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
                Dtype::I32 => bytes.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
                Dtype::I16 => bytes.as_chunks().0.iter().map(|b| f64::from(i16::from_le_bytes(*b))).collect(),
                Dtype::U8 => bytes.iter().map(|b| f64::from(*b)).collect(),
                other => panic!("{}: {name} has type {other:?}", self.path.display()),
            }
        })
    }

    /// Elements of tensor `name` rounded to f32.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.f64(name).into_iter().map(|value| value as f32).collect()
    }

    /// Elements of tensor `name` as indices.
    pub fn usize(&self, name: &str) -> Vec<usize> {
        self.f64(name).into_iter().map(|value| value as usize).collect()
    }

    fn parsed(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    fn view<T>(&self, name: &str, read: impl FnOnce(safetensors::tensor::TensorView) -> T) -> T {
        let parsed = self.parsed();
        read(parsed.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.path.display())))
    }
}
