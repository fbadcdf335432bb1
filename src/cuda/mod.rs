//! NVIDIA GPUs. The only module that names the driver's binding crate.
//!
//! Nothing here panics on a machine without a GPU, a driver or NVRTC: [`devices`] says what is there and what is missing,
//! [`Cuda::open`] fails with a reason. The binding loads libcuda on first use and panics when it is absent, so every
//! path to it asks first whether it is there.

mod cache;
mod device;
mod nvrtc;
mod probe;

pub use cache::{Cache, key};
pub use device::{Cuda, usable};
pub use nvrtc::{Nvrtc, Resources, Target};
pub use probe::{DeviceInfo, MINIMUM_CAPABILITY, Unavailable, devices, driver_version};
