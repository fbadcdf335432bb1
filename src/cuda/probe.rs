//! What of a working GPU is there.

use cudarc::driver::{result, sys};

use crate::error::Error;

/// Oldest compute capability the kernels run on: they use bf16 tensor cores and asynchronous copies.
pub const MINIMUM_CAPABILITY: (u32, u32) = (8, 0);

/// Why no GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// No driver library.
    #[error(
        "no NVIDIA driver: libcuda.so was not found (install the driver; in a container, pass the GPU through)"
    )]
    NoDriver,
    /// The driver refused.
    #[error("the NVIDIA driver does not start: {0}")]
    Driver(String),
    /// A driver, but no GPU.
    #[error("the NVIDIA driver sees no GPU (check nvidia-smi and CUDA_VISIBLE_DEVICES)")]
    NoDevices,
    /// No GPU of this number.
    #[error("there is no cuda:{ordinal}; the driver sees {count}, numbered from 0")]
    NoSuchDevice {
        /// Number asked for.
        ordinal: usize,
        /// GPUs there are.
        count: usize,
    },
    /// An architecture without what the kernels need.
    #[error("{name} has compute capability {}.{}, but {}.{} is needed (bf16 tensor cores)", .capability.0, .capability.1,
        MINIMUM_CAPABILITY.0, MINIMUM_CAPABILITY.1)]
    TooOld {
        /// Name of the GPU.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
}

impl From<Unavailable> for Error {
    fn from(reason: Unavailable) -> Error {
        Error::NoDevice(reason.to_string())
    }
}

impl From<result::DriverError> for Unavailable {
    fn from(error: result::DriverError) -> Unavailable {
        Unavailable::Driver(describe(error))
    }
}

/// The driver's own words.
pub(super) fn describe(error: result::DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(text)) => format!("{} ({})", text.to_string_lossy(), name.to_string_lossy()),
        _ => format!("error {}", error.0 as u32),
    }
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: usize,
    /// "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory a block may ask for.
    pub shared_bytes: u32,
    /// Bytes of memory.
    pub memory: usize,
}

/// Starts the driver.
pub(super) fn driver() -> Result<(), Unavailable> {
    // SAFETY: opens the library and looks a symbol up; without it every other call would panic.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    match result::init() {
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(Unavailable::NoDevices),
        other => Ok(other?),
    }
}

/// The CUDA version that the driver supports, major and minor.
pub fn driver_version() -> Result<(i32, i32), Unavailable> {
    driver()?;
    let mut version = 0;
    // SAFETY: a pointer to an integer; the driver is there.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok((version / 1000, version % 1000 / 10))
}

/// All GPUs.
pub fn devices() -> Result<Vec<DeviceInfo>, Unavailable> {
    driver()?;
    let count = result::device::get_count()?;
    if count == 0 {
        return Err(Unavailable::NoDevices);
    }
    (0..count).map(|ordinal| Ok(describe_device(ordinal)?)).collect()
}

fn describe_device(ordinal: i32) -> Result<DeviceInfo, result::DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal)?;
    // SAFETY: the driver just handed the device out.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map(|v| v as u32);
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }?,
    })
}
