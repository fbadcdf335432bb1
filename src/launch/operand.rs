//! Operands of kernels: typed addresses of device memory, and what a device can do.

use std::marker::PhantomData;

use crate::ops::dropout::{AppliedDropout, Dropout, DropoutKey};

pub use half::{bf16 as Bf16, f16 as F16};

/// Address of an element in device memory. No more than a number: only kernels follow it.
#[derive(Debug)]
pub struct Pointer<T> {
    /// The address; 0 is null.
    pub address: u64,
    element: PhantomData<T>,
}

impl<T> Clone for Pointer<T> {
    fn clone(&self) -> Pointer<T> {
        *self
    }
}

impl<T> Copy for Pointer<T> {}

impl<T> PartialEq for Pointer<T> {
    fn eq(&self, other: &Pointer<T>) -> bool {
        self.address == other.address
    }
}

impl<T> Pointer<T> {
    /// An operand that is not there.
    pub const NULL: Pointer<T> = Pointer::new(0);

    /// The element at `address`.
    pub const fn new(address: u64) -> Pointer<T> {
        Pointer { address, element: PhantomData }
    }

    /// `elements` further on.
    pub fn offset(self, elements: usize) -> Pointer<T> {
        Pointer::new(self.address + (elements * size_of::<T>()) as u64)
    }

    /// Whether no operand is there.
    pub fn is_null(self) -> bool {
        self.address == 0
    }

    /// Whether 16-byte vector access may start here.
    pub fn aligned16(self) -> bool {
        self.address.is_multiple_of(16)
    }
}

/// The operand, or null.
pub fn or_null<T>(pointer: Option<Pointer<T>>) -> Pointer<T> {
    pointer.unwrap_or(Pointer::NULL)
}

/// A count as kernels take it. Counts beyond `int` are refused when a program is planned.
pub fn int(count: usize) -> i32 {
    match i32::try_from(count) {
        Ok(count) => count,
        Err(_) => panic!("{count} does not fit a kernel's int"),
    }
}

/// Element type of a matrix in device memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
}

impl ElementType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            ElementType::F32 => 4,
            ElementType::Bf16 => 2,
        }
    }
}

/// A row-major matrix in device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Matrix {
    /// Address of its first element.
    pub address: u64,
    /// Type of its elements.
    pub element: ElementType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements between the starts of two rows.
    pub ld: usize,
}

impl Matrix {
    /// Its first element. Panics unless it holds f32 (the operation's contract says so).
    pub fn f32(&self) -> Pointer<f32> {
        assert_eq!(self.element, ElementType::F32, "an operand must be f32");
        Pointer::new(self.address)
    }

    /// Its first element. Panics unless it holds bf16.
    pub fn bf16(&self) -> Pointer<Bf16> {
        assert_eq!(self.element, ElementType::Bf16, "an operand must be bf16");
        Pointer::new(self.address)
    }

    /// Whether every row starts on a 16-byte boundary.
    pub fn aligned16(&self) -> bool {
        self.address.is_multiple_of(16) && (self.ld * self.element.bytes()).is_multiple_of(16)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 || self.cols == 0
    }
}

/// Element type of a factor of a product.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FactorType {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision; infinite beyond ±65,504, which is why nothing but factors is stored so.
    F16,
}

impl FactorType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            FactorType::F32 => 4,
            FactorType::Bf16 | FactorType::F16 => 2,
        }
    }
}

impl From<ElementType> for FactorType {
    fn from(element: ElementType) -> FactorType {
        match element {
            ElementType::F32 => FactorType::F32,
            ElementType::Bf16 => FactorType::Bf16,
        }
    }
}

/// A row-major matrix in device memory, as a product reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Factor {
    /// Address of its first element.
    pub address: u64,
    /// Type of its elements.
    pub element: FactorType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements between the starts of two rows.
    pub ld: usize,
}

impl From<Matrix> for Factor {
    fn from(matrix: Matrix) -> Factor {
        let Matrix { address, element, rows, cols, ld } = matrix;
        Factor { address, element: element.into(), rows, cols, ld }
    }
}

impl Factor {
    /// Whether every row starts on a 16-byte boundary.
    pub fn aligned16(&self) -> bool {
        self.address.is_multiple_of(16) && (self.ld * self.element.bytes()).is_multiple_of(16)
    }

    /// `count` of its rows, from row `start` on.
    pub fn rows_at(self, start: usize, count: usize) -> Factor {
        let offset = start * self.ld * self.element.bytes();
        Factor { address: self.address + offset as u64, rows: count, ..self }
    }
}

/// A dropout layer as kernels take it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DropoutOperand {
    /// `[seed low, seed high, draw]`; null for no dropout.
    pub key: Pointer<i32>,
    /// Number of the layer.
    pub site: u32,
    /// Random words below it are dropped; 2³² drops everything.
    pub threshold: u64,
    /// What kept values are multiplied by.
    pub scale: f32,
}

impl DropoutOperand {
    /// No dropout.
    pub const NONE: DropoutOperand = DropoutOperand { key: Pointer::NULL, site: 0, threshold: 0, scale: 1.0 };

    /// The layer `dropout` under the key in device memory at `key`.
    pub fn new(dropout: Dropout, key: Pointer<i32>) -> DropoutOperand {
        let applied = AppliedDropout { dropout, key: DropoutKey { seed: 0, draw: 0 } };
        DropoutOperand { key, site: dropout.site, threshold: applied.threshold(), scale: applied.scale() }
    }

    /// The operand, or none.
    pub fn or_none(dropout: Option<DropoutOperand>) -> DropoutOperand {
        dropout.unwrap_or(DropoutOperand::NONE)
    }
}

/// What products of f32 matrices, and the activations, are computed in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// f32 storage; factors of products are rounded to tf32 (10 bits of fraction), sums are f32.
    Tf32,
    /// Activations and factors of products are stored in bf16; sums, statistics, gradients of parameters and the
    /// optimiser are f32.
    Bf16,
    /// f32 storage; factors of products are rounded to f16 (10 bits of fraction, at the rate of bf16; infinite beyond
    /// ±65,504), sums are f32. Forward passes only: gradients would underflow, and losses are not scaled.
    F16,
}

impl Precision {
    /// "f32", "tf32", "bf16", "f16".
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }

    /// What products read instead of f32, where that is another type: there is then a copy of the parameters in it.
    pub fn factors(self) -> Option<FactorType> {
        match self {
            Precision::F32 | Precision::Tf32 => None,
            Precision::Bf16 => Some(FactorType::Bf16),
            Precision::F16 => Some(FactorType::F16),
        }
    }

    /// Whether gradients can be computed.
    pub fn differentiates(self) -> bool {
        self != Precision::F16
    }
}

/// What launches may count on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceLimits {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory a block may ask for.
    pub shared_bytes: u32,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
}
