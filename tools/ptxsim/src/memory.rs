//! Device memory: allocations that cannot be confused with one another.
//!
//! An address carries the number of its allocation in the high bits, so an access that runs out of one allocation can
//! never land in another. Words are atomics because blocks run in parallel; all accesses are relaxed.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};

/// Bits of an address that are the offset in its allocation: 64 GiB each.
pub const OFFSET_BITS: u32 = 36;
/// Generic address of shared memory.
pub const SHARED_WINDOW: u64 = 1 << 32;
/// Generic address of local memory.
pub const LOCAL_WINDOW: u64 = 2 << 32;
/// Size of either window.
pub const WINDOW_BYTES: u64 = 1 << 32;

/// One allocation.
#[derive(Debug)]
pub struct Allocation {
    /// Name for reports.
    pub name: String,
    /// Length.
    pub bytes: u64,
    words: Box<[AtomicU32]>,
    // One bit per byte: it has been written.
    initialised: Box<[AtomicU32]>,
}

/// Why an access does not go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No allocation was ever there.
    Wild,
    /// The allocation has been freed.
    Freed,
    /// Runs out of the allocation.
    Outside,
    /// Not a multiple of the access's size.
    Misaligned,
}

#[derive(Debug)]
enum Slot {
    Live(Allocation),
    Freed(String),
}

/// All allocations of a machine.
#[derive(Debug, Default)]
pub struct GlobalMemory {
    slots: Vec<Slot>,
}

impl Allocation {
    fn new(name: &str, bytes: u64) -> Allocation {
        let zeros = |n: u64| (0..n).map(|_| AtomicU32::new(0)).collect();
        Allocation {
            name: name.into(),
            bytes,
            words: zeros(bytes.div_ceil(4)),
            initialised: zeros(bytes.div_ceil(32)),
        }
    }

    /// The word that holds byte `offset`.
    #[inline]
    pub fn word(&self, offset: u64) -> &AtomicU32 {
        &self.words[(offset / 4) as usize]
    }

    /// Bytes of an aligned access of at most 4 bytes.
    #[inline]
    pub fn read_small(&self, offset: u64, bytes: u32) -> u32 {
        let word = self.word(offset).load(Ordering::Relaxed) >> (8 * (offset % 4));
        if bytes == 4 { word } else { word & ((1 << (8 * bytes)) - 1) }
    }

    /// Writes an aligned access of at most 4 bytes; neighbours in the word may be written by others meanwhile.
    #[inline]
    pub fn write_small(&self, offset: u64, bytes: u32, value: u32) {
        let word = self.word(offset);
        if bytes == 4 {
            word.store(value, Ordering::Relaxed);
        } else {
            let shift = 8 * (offset % 4) as u32;
            let mask = ((1u32 << (8 * bytes)) - 1) << shift;
            word.fetch_and(!mask, Ordering::Relaxed);
            word.fetch_or((value << shift) & mask, Ordering::Relaxed);
        }
    }

    /// Initialised bits of an aligned access of at most 32 bytes, lowest byte first.
    #[inline]
    pub fn initialised(&self, offset: u64, bytes: u32) -> u32 {
        let bits = self.initialised[(offset / 32) as usize].load(Ordering::Relaxed) >> (offset % 32);
        if bytes == 32 { bits } else { bits & ((1 << bytes) - 1) }
    }

    /// Sets those bits.
    #[inline]
    pub fn set_initialised(&self, offset: u64, bytes: u32, bits: u32) {
        let word = &self.initialised[(offset / 32) as usize];
        let shift = offset % 32;
        let mask = if bytes == 32 { u32::MAX } else { (1 << bytes) - 1 };
        // Most writes go where something was written before; a look is cheaper than a locked update.
        if bits & mask == mask && word.load(Ordering::Relaxed) >> shift & mask == mask {
            return;
        }
        let clear = !bits & mask;
        if clear != 0 {
            word.fetch_and(!(clear << shift), Ordering::Relaxed);
        }
        word.fetch_or((bits & mask) << shift, Ordering::Relaxed);
    }

    // Host side: any range, byte by byte at the edges.
    fn mark(&self, offset: u64, bytes: u64, initialised: bool) {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let take = (32 - at % 32).min(end - at);
            let mask = if take == 32 { u32::MAX } else { ((1u32 << take) - 1) << (at % 32) };
            let word = &self.initialised[(at / 32) as usize];
            if initialised {
                word.fetch_or(mask, Ordering::Relaxed);
            } else {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
            at += take;
        }
    }

    fn copy_in(&self, offset: u64, data: &[u8]) {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            if position.is_multiple_of(4) && data.len() - at >= 4 {
                let value = u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
                self.word(position).store(value, Ordering::Relaxed);
                at += 4;
            } else {
                self.write_small(position, 1, data[at].into());
                at += 1;
            }
        }
    }

    fn copy_out(&self, offset: u64, data: &mut [u8]) {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            if position.is_multiple_of(4) && data.len() - at >= 4 {
                let value = self.word(position).load(Ordering::Relaxed);
                data[at..at + 4].copy_from_slice(&value.to_le_bytes());
                at += 4;
            } else {
                data[at] = self.read_small(position, 1) as u8;
                at += 1;
            }
        }
    }
}

impl GlobalMemory {
    /// Adds an allocation and returns its address.
    pub fn allocate(&mut self, bytes: u64, name: &str) -> u64 {
        self.slots.push(Slot::Live(Allocation::new(name, bytes)));
        (self.slots.len() as u64) << OFFSET_BITS
    }

    /// Frees an allocation by its first address.
    ///
    /// # Errors
    /// Not the first address of a live allocation.
    pub fn free(&mut self, address: u64) -> Result<()> {
        match self.find(address, 0) {
            Ok((_, 0)) => {}
            _ => return Err(host_error(address, 0, "not the start of a live allocation")),
        }
        let slot = &mut self.slots[(address >> OFFSET_BITS) as usize - 1];
        if let Slot::Live(allocation) = slot {
            *slot = Slot::Freed(std::mem::take(&mut allocation.name));
        }
        Ok(())
    }

    /// The allocation of an address and the offset in it, bounds checked.
    #[inline]
    pub fn find(&self, address: u64, bytes: u64) -> std::result::Result<(&Allocation, u64), Fault> {
        let number = (address >> OFFSET_BITS) as usize;
        match self.slots.get(number.wrapping_sub(1)) {
            Some(Slot::Live(allocation)) => {
                let offset = address & ((1 << OFFSET_BITS) - 1);
                if offset + bytes <= allocation.bytes {
                    Ok((allocation, offset))
                } else {
                    Err(Fault::Outside)
                }
            }
            Some(Slot::Freed(_)) => Err(Fault::Freed),
            None => Err(Fault::Wild),
        }
    }

    /// The same for a device access, which must be aligned to its size.
    #[inline]
    pub fn locate(&self, address: u64, bytes: u32) -> std::result::Result<(&Allocation, u64), Fault> {
        let found = self.find(address, bytes.into())?;
        if address & u64::from(bytes - 1) != 0 { Err(Fault::Misaligned) } else { Ok(found) }
    }

    /// Words for a report on an address.
    pub fn describe(&self, address: u64) -> String {
        let number = (address >> OFFSET_BITS) as usize;
        let offset = address & ((1 << OFFSET_BITS) - 1);
        match self.slots.get(number.wrapping_sub(1)) {
            Some(Slot::Live(a)) => {
                // A negative offset from an allocation reads as the far end of the one before it.
                if let (true, Some(Slot::Live(next))) =
                    (offset >> (OFFSET_BITS - 1) != 0, self.slots.get(number))
                {
                    return format!("byte -{} of `{}`", (1 << OFFSET_BITS) - offset, next.name);
                }
                format!("byte {offset} of `{}` ({} bytes)", a.name, a.bytes)
            }
            Some(Slot::Freed(name)) => format!("byte {offset} of the freed `{name}`"),
            None => format!("address {address:#x}, which belongs to no allocation"),
        }
    }

    /// Host write.
    ///
    /// # Errors
    /// Outside the allocations.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        let (allocation, offset) = self.host(address, data.len())?;
        allocation.copy_in(offset, data);
        allocation.mark(offset, data.len() as u64, true);
        Ok(())
    }

    /// Host read.
    ///
    /// # Errors
    /// Outside the allocations.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        let (allocation, offset) = self.host(address, bytes)?;
        let mut data = vec![0; bytes];
        allocation.copy_out(offset, &mut data);
        Ok(data)
    }

    /// Which bytes of a range have been written since they were allocated or poisoned.
    ///
    /// # Errors
    /// Outside the allocations.
    pub fn written(&self, address: u64, bytes: usize) -> Result<Vec<bool>> {
        let (allocation, offset) = self.host(address, bytes)?;
        Ok((0..bytes as u64).map(|i| allocation.initialised(offset + i, 1) != 0).collect())
    }

    /// Sets every byte of a range; the range counts as initialised unless `poison`.
    ///
    /// # Errors
    /// Outside the allocations.
    pub fn fill(&self, address: u64, bytes: usize, value: u8, poison: bool) -> Result<()> {
        let (allocation, offset) = self.host(address, bytes)?;
        allocation.copy_in(offset, &vec![value; bytes]);
        allocation.mark(offset, bytes as u64, !poison);
        Ok(())
    }

    /// Whether a range lies in one live allocation.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self, address: u64, bytes: usize) -> Result<()> {
        self.host(address, bytes).map(|_| ())
    }

    fn host(&self, address: u64, bytes: usize) -> Result<(&Allocation, u64)> {
        self.find(address, bytes as u64).map_err(|_| host_error(address, bytes, &self.describe(address)))
    }
}

fn host_error(address: u64, bytes: usize, message: &str) -> Error {
    Error::Memory { address, bytes, message: message.into() }
}
