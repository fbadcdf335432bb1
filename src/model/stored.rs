//! What is written to safetensors files: types of stored weights, and tensors in the making.

use std::borrow::Cow;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::View;

/// Element type of saved weights. Values are rounded to nearest even.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StoredType {
    /// As computed.
    #[default]
    F32,
    /// 11 significant bits, up to 65 504.
    F16,
    /// 8 significant bits, the range of f32.
    Bf16,
}

impl StoredType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        if self == StoredType::F32 { 4 } else { 2 }
    }

    /// What `torch_dtype` calls it.
    pub fn torch_name(self) -> &'static str {
        match self {
            StoredType::F32 => "float32",
            StoredType::F16 => "float16",
            StoredType::Bf16 => "bfloat16",
        }
    }

    /// The value that reading gives back.
    pub fn rounded(self, value: f32) -> f32 {
        match self {
            StoredType::F32 => value,
            StoredType::F16 => f16::from_f32(value).to_f32(),
            StoredType::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            StoredType::F32 => Dtype::F32,
            StoredType::F16 => Dtype::F16,
            StoredType::Bf16 => Dtype::BF16,
        }
    }

    fn encode<'a>(self, values: impl Iterator<Item = &'a f32>) -> Vec<u8> {
        match self {
            StoredType::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
            StoredType::F16 => values.flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            StoredType::Bf16 => values.flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        }
    }
}

/// A matrix in padded rows, to be written without the padding.
pub(super) struct Rows<'a> {
    pub values: &'a [f32],
    pub shape: Vec<usize>,
    pub cols: usize,
    pub ld: usize,
    pub stored: StoredType,
}

/// A tensor to be written.
pub(super) enum Saved<'a> {
    Rows(Rows<'a>),
    Packed(Vec<u8>),
    Values(Vec<f32>, StoredType),
}

/// A tensor of a file that is being written, with its shape.
pub(super) struct Tensor<'a> {
    shape: Vec<usize>,
    saved: &'a Saved<'a>,
}

impl<'a> Tensor<'a> {
    pub fn new(saved: &'a Saved<'a>) -> Tensor<'a> {
        let shape = match saved {
            Saved::Rows(rows) => rows.shape.clone(),
            Saved::Packed(bytes) => vec![bytes.len()],
            Saved::Values(values, _) => vec![values.len()],
        };
        Tensor { shape, saved }
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.saved {
            Saved::Rows(rows) => rows.stored.dtype(),
            Saved::Packed(_) => Dtype::U8,
            Saved::Values(_, stored) => stored.dtype(),
        }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        match self.saved {
            Saved::Rows(Rows { values, cols, ld, stored, .. }) => {
                let rows = values.chunks((*ld).max(1));
                Cow::Owned(stored.encode(rows.flat_map(|row| &row[..(*cols).min(row.len())])))
            }
            Saved::Packed(bytes) => Cow::Borrowed(bytes),
            Saved::Values(values, stored) => Cow::Owned(stored.encode(values.iter())),
        }
    }
    fn data_len(&self) -> usize {
        let width = match self.saved {
            Saved::Rows(rows) => rows.stored.bytes(),
            Saved::Packed(_) => 1,
            Saved::Values(_, stored) => stored.bytes(),
        };
        width * self.shape.iter().product::<usize>()
    }
}
