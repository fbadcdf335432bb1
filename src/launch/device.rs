//! What runs kernels.

use super::{DeviceLimits, Step};
use crate::error::Result;

/// Steps that a device keeps.
#[derive(PartialEq, Eq, Debug)]
pub struct Recording(pub(crate) u64);

/// Memory and a stream of work in order: a GPU, or the emulator.
///
/// Work may be asynchronous; [`Device::download`] and [`Device::synchronize`] wait for everything before them. A kernel
/// that faults is an error of the call that waits for it at the latest.
pub trait Device {
    /// What it is: "NVIDIA H100 80GB HBM3 (sm_90)", "emulated (compute_80)".
    fn name(&self) -> &str;

    /// Whether its times mean anything: a GPU, not the emulator.
    fn is_hardware(&self) -> bool {
        true
    }

    /// What launches may count on.
    fn limits(&self) -> DeviceLimits;

    /// Bytes that could be allocated now; `None` where nothing but the host's memory limits it.
    fn free_bytes(&self) -> Result<Option<usize>>;

    /// Makes sources ready to launch from, by their index in [`kernels::MODULES`](super::kernels::MODULES). Launching
    /// does it too, one at a time.
    fn load(&mut self, modules: &[usize]) -> Result<()>;

    /// Uninitialised memory, 256-byte aligned. `label` names it in findings and errors.
    fn allocate(&mut self, bytes: usize, label: &str) -> Result<u64>;

    /// Gives memory back; `address` is what [`Device::allocate`] returned.
    fn free(&mut self, address: u64) -> Result<()>;

    /// Copies from the host.
    fn upload(&mut self, address: u64, data: &[u8]) -> Result<()>;

    /// Copies to the host, after all work before it.
    fn download(&self, address: u64, data: &mut [u8]) -> Result<()>;

    /// Sets bytes.
    fn fill(&mut self, address: u64, value: u8, bytes: usize) -> Result<()>;

    /// Makes bytes recognisable as not written: NaN in every float format.
    fn poison(&mut self, address: u64, bytes: usize) -> Result<()> {
        self.fill(address, 0xff, bytes)
    }

    /// Runs steps in order.
    fn run(&mut self, steps: &[Step]) -> Result<()>;

    /// Keeps steps for [`Device::replay`], which then costs one call for all of them; `None` where that saves nothing.
    /// Runs nothing. Their sources must be loaded.
    fn record(&mut self, _steps: &[Step]) -> Result<Option<Recording>> {
        Ok(None)
    }

    /// Runs recorded steps.
    fn replay(&mut self, _recording: &Recording) -> Result<()> {
        unreachable!("this device records nothing")
    }

    /// Forgets recordings, before memory that their steps use is freed.
    fn forget(&mut self, _recordings: Vec<Recording>) -> Result<()> {
        Ok(())
    }

    /// Runs steps in order and appends the seconds of each part of them; part i ends before step `ends[i]`. A GPU runs all
    /// steps once more before, so that it is busy while the clocked ones are queued.
    fn run_timed(&mut self, steps: &[Step], ends: &[usize], seconds: &mut Vec<f64>) -> Result<()> {
        let mut begin = 0;
        for &end in ends {
            self.synchronize()?;
            let start = std::time::Instant::now();
            self.run(&steps[begin..end])?;
            self.synchronize()?;
            seconds.push(start.elapsed().as_secs_f64());
            begin = end;
        }
        Ok(())
    }

    /// Waits for all work.
    fn synchronize(&mut self) -> Result<()>;
}
