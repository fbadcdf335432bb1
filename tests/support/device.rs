//! A device for kernel tests: the emulator, or with SECATEUR_TEST_DEVICE=cuda the first GPU.
//!
//! An operation is called through its `cuda.rs`, as the executor calls it. Operands are padded to their leading
//! dimension with memory that must not be read; outputs are poisoned before the operation runs.

use half::{bf16, f16};
use secateur::cuda::{Cache, Cuda};
use secateur::exec::{Approximations, Emulated};
use secateur::launch::{
    Device, DeviceLimits, ElementType, Factor, FactorType, Matrix, Pointer, Precision, Queue,
};

/// A device and what a test put on it.
pub struct TestDevice {
    device: Box<dyn Device>,
    precision: Precision,
}

/// Leading dimension of a device matrix: the program's rule.
pub fn leading_dimension(cols: usize) -> usize {
    if cols < 8 { cols } else { cols.next_multiple_of(8) }
}

impl TestDevice {
    /// The device that `SECATEUR_TEST_DEVICE` names; the emulator if it is not set.
    pub fn new() -> TestDevice {
        TestDevice::with_precision(Precision::F32)
    }

    /// The emulator, with approximate instructions at an end of their documented errors.
    pub fn with_approximations(precision: Precision, approximations: Approximations) -> TestDevice {
        let device = Emulated::with(1, approximations).unwrap_or_else(|error| panic!("{error}"));
        TestDevice { device: Box::new(device), precision }
    }

    /// The device, whose products compute in `precision`.
    pub fn with_precision(precision: Precision) -> TestDevice {
        TestDevice::open(precision, 1)
    }

    /// The device; if emulated, `order` decides the order in which blocks and warps run.
    pub fn with_order(order: u64) -> TestDevice {
        TestDevice::open(Precision::F32, order)
    }

    fn open(precision: Precision, order: u64) -> TestDevice {
        let asked = std::env::var("SECATEUR_TEST_DEVICE").unwrap_or_else(|_| "emulated".into());
        let device: Box<dyn Device> = match asked.as_str() {
            "emulated" => Box::new(Emulated::new(order).unwrap_or_else(|error| panic!("{error}"))),
            "cuda" => Box::new(Cuda::open(0, Cache::of_user()).unwrap_or_else(|error| panic!("{error}"))),
            other => panic!("SECATEUR_TEST_DEVICE={other}: emulated or cuda"),
        };
        TestDevice { device, precision }
    }

    /// What the device offers a launch.
    pub fn limits(&self) -> DeviceLimits {
        self.device.limits()
    }

    /// Queues an operation, once to measure its scratch and once to run it, and waits for it.
    pub fn run(&mut self, operation: impl Fn(&mut Queue)) {
        self.try_run(operation).unwrap_or_else(|error| panic!("{error}"));
    }

    /// As [`TestDevice::run`]; a finding of the emulator or a fault of the GPU is the error.
    pub fn try_run(&mut self, operation: impl Fn(&mut Queue)) -> secateur::Result<()> {
        let limits = self.device.limits();
        let mut queue = Queue::measuring(limits, self.precision);
        operation(&mut queue);
        let bytes = queue.scratch_peak();
        let scratch = if bytes > 0 { self.device.allocate(bytes, "scratch")? } else { 0 };
        if bytes > 0 {
            self.device.poison(scratch, bytes)?;
        }
        let mut queue = Queue::new(limits, self.precision, scratch, bytes);
        operation(&mut queue);
        self.device.run(queue.steps())?;
        self.device.synchronize()?;
        if bytes > 0 {
            self.device.free(scratch)?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8], label: &str) -> u64 {
        let address = self.device.allocate(bytes.len().max(4), label).expect("memory");
        self.device.upload(address, bytes).expect("upload");
        address
    }

    /// Copies floats to the device.
    pub fn floats(&mut self, values: &[f32]) -> Pointer<f32> {
        Pointer::new(self.put(bytemuck::cast_slice(values), "floats"))
    }

    /// Copies integers to the device.
    pub fn ints(&mut self, values: &[i32]) -> Pointer<i32> {
        Pointer::new(self.put(bytemuck::cast_slice(values), "ints"))
    }

    /// Copies 64-bit words to the device.
    pub fn words(&mut self, values: &[u64]) -> Pointer<u64> {
        Pointer::new(self.put(bytemuck::cast_slice(values), "words"))
    }

    /// A matrix `[rows, cols]` of unwritten memory, poisoned.
    pub fn output(&mut self, rows: usize, cols: usize, element: ElementType) -> Matrix {
        let ld = leading_dimension(cols);
        let bytes = rows * ld * element.bytes();
        let address = self.device.allocate(bytes.max(4), "matrix").expect("memory");
        self.device.poison(address, bytes).expect("poison");
        Matrix { address, element, rows, cols, ld }
    }

    /// A matrix `[rows, cols]` of these values, row by row, rounded to `element`. Its padding stays unwritten.
    pub fn matrix(&mut self, rows: usize, cols: usize, values: &[f32], element: ElementType) -> Matrix {
        assert_eq!(values.len(), rows * cols);
        let matrix = self.output(rows, cols, element);
        self.write(matrix, values);
        matrix
    }

    /// A vector of unwritten memory, poisoned.
    pub fn output_floats(&mut self, len: usize) -> Pointer<f32> {
        let address = self.device.allocate((len * 4).max(4), "floats").expect("memory");
        self.device.poison(address, len * 4).expect("poison");
        Pointer::new(address)
    }

    /// A factor `[rows, cols]` of unwritten memory, poisoned.
    pub fn factor(&mut self, rows: usize, cols: usize, element: FactorType) -> Factor {
        let ld = leading_dimension(cols);
        let bytes = rows * ld * element.bytes();
        let address = self.device.allocate(bytes.max(4), "factor").expect("memory");
        self.device.poison(address, bytes).expect("poison");
        Factor { address, element, rows, cols, ld }
    }

    /// Replaces the elements of a matrix.
    pub fn write(&mut self, matrix: impl Into<Factor>, values: &[f32]) {
        let matrix: Factor = matrix.into();
        let size = matrix.element.bytes();
        for (row, values) in values.chunks(matrix.cols.max(1)).enumerate() {
            let bytes: Vec<u8> = match matrix.element {
                FactorType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                FactorType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
                FactorType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            };
            self.device.upload(matrix.address + (row * matrix.ld * size) as u64, &bytes).expect("upload");
        }
    }

    /// The bits of a factor of 16-bit elements, row by row.
    pub fn read_bits(&self, factor: &Factor) -> Vec<u16> {
        let mut out = Vec::with_capacity(factor.rows * factor.cols);
        let mut bits = vec![0u16; factor.cols];
        for row in 0..factor.rows {
            let address = factor.address + (row * factor.ld * 2) as u64;
            self.device.download(address, bytemuck::cast_slice_mut(&mut bits)).expect("download");
            out.extend(&bits);
        }
        out
    }

    /// The elements of a matrix, row by row. An element that no kernel wrote is NaN.
    pub fn read(&self, matrix: &Matrix) -> Vec<f32> {
        let size = matrix.element.bytes();
        let mut out = Vec::with_capacity(matrix.rows * matrix.cols);
        let mut bytes = vec![0u8; matrix.cols * size];
        for row in 0..matrix.rows {
            self.device
                .download(matrix.address + (row * matrix.ld * size) as u64, &mut bytes)
                .expect("download");
            out.extend(bytes.chunks_exact(size).map(|element| match *element {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
                _ => unreachable!("two or four bytes"),
            }));
        }
        out
    }

    /// `len` floats from `pointer` on.
    pub fn read_floats(&self, pointer: Pointer<f32>, len: usize) -> Vec<f32> {
        let mut out = vec![0.0f32; len];
        self.device.download(pointer.address, bytemuck::cast_slice_mut(&mut out)).expect("download");
        out
    }
}
