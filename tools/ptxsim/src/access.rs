//! Loads and stores: where an address points, whether the access is allowed, and the bytes themselves.

use crate::block::Block;
use crate::execute::tensor;
use crate::findings::FindingKind;
use crate::instruction::{Access, Address, Group};
use crate::memory::{Allocation, Fault, LOCAL_WINDOW, SHARED_WINDOW};
use crate::registers::{LANES, Lanes32, Lanes64};
use crate::step::space_of;
use crate::types::Space;
use crate::warp::{Next, Warp, lanes};

/// Up to 16 bytes of every lane, as words.
pub(crate) type Payload = [Lanes32; 4];

/// One lane's place after the checks.
pub(crate) enum Place<'m> {
    /// Device memory.
    Global(&'m Allocation, u64),
    /// Byte of the block's shared memory.
    Shared(usize),
    /// Byte of the warp's local memory.
    Local(usize),
}

/// Reads up to 16 aligned bytes as words.
#[inline]
pub(crate) fn read_bytes(from: &[u8], at: usize, bytes: u32) -> [u32; 4] {
    let mut words = [0; 4];
    if bytes == 4 {
        // By far the most frequent.
        words[0] = u32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]]);
    } else if bytes < 4 {
        for i in 0..bytes as usize {
            words[0] |= u32::from(from[at + i]) << (8 * i);
        }
    } else {
        for (word, chunk) in words.iter_mut().zip(from[at..at + bytes as usize].chunks_exact(4)) {
            *word = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
    }
    words
}

/// Writes up to 16 aligned bytes.
pub(crate) fn write_bytes(to: &mut [u8], at: usize, bytes: u32, words: [u32; 4]) {
    if bytes < 4 {
        for i in 0..bytes as usize {
            to[at + i] = (words[0] >> (8 * i)) as u8;
        }
    } else {
        for (word, chunk) in words.iter().zip(to[at..at + bytes as usize].chunks_exact_mut(4)) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }
}

pub(crate) fn read_global(allocation: &Allocation, offset: u64, bytes: u32) -> [u32; 4] {
    let mut words = [0; 4];
    for (i, word) in words.iter_mut().enumerate().take(bytes.div_ceil(4) as usize) {
        *word = allocation.read_small(offset + 4 * i as u64, bytes.min(4));
    }
    words
}

pub(crate) fn write_global(allocation: &Allocation, offset: u64, bytes: u32, words: [u32; 4]) {
    for (i, &word) in words.iter().enumerate().take(bytes.div_ceil(4) as usize) {
        allocation.write_small(offset + 4 * i as u64, bytes.min(4), word);
    }
}

impl Warp<'_> {
    pub(crate) fn addresses(&self, address: Address) -> Lanes64 {
        let offset = address.offset as u64;
        if address.long {
            let base = self.registers.long(address.base);
            std::array::from_fn(|i| base[i].wrapping_add(offset))
        } else {
            let base = self.registers.word(address.base);
            std::array::from_fn(|i| u64::from(base[i]).wrapping_add(offset))
        }
    }

    /// Checks one lane's address. A fault is reported, and the lane then does nothing.
    pub(crate) fn place<'m>(
        &self,
        block: &mut Block<'m, '_>,
        pc: u32,
        lane: usize,
        space: Space,
        address: u64,
        bytes: u32,
    ) -> Option<Place<'m>> {
        let memory = block.launch.memory;
        let (space, address) = match space {
            Space::Generic => match space_of(address) {
                Space::Shared => (Space::Shared, address - SHARED_WINDOW),
                Space::Local => (Space::Local, address - LOCAL_WINDOW),
                other => (other, address),
            },
            _ => (space, address),
        };
        let aligned = address & u64::from(bytes - 1) == 0;
        let fits = |size: u64| address.checked_add(bytes.into()).is_some_and(|end| end <= size);
        let (fault, what) = match space {
            Space::Shared if !fits(block.shared.len() as u64) => (
                Fault::Outside,
                format!("byte {} of shared memory ({} bytes)", address as i64, block.shared.len()),
            ),
            Space::Shared if aligned => return Some(Place::Shared(address as usize)),
            Space::Shared => (Fault::Misaligned, format!("byte {address} of shared memory")),
            Space::Local => {
                let frame = self.local.len() / LANES;
                if fits(frame as u64) && aligned {
                    return Some(Place::Local(lane * frame + address as usize));
                }
                let fault = if aligned { Fault::Outside } else { Fault::Misaligned };
                (fault, format!("byte {} of local memory ({frame} bytes)", address as i64))
            }
            _ => match memory.locate(address, bytes) {
                Ok((allocation, offset)) => return Some(Place::Global(allocation, offset)),
                Err(fault) => (fault, memory.describe(address)),
            },
        };
        let kind =
            if fault == Fault::Misaligned { FindingKind::Misaligned } else { FindingKind::OutOfBounds };
        block.report(kind, pc, self.index, lane as u32, 1, || format!("access of {bytes} bytes at {what}"));
        None
    }

    pub(crate) fn load(
        &mut self,
        block: &mut Block<'_, '_>,
        pc: u32,
        access: Access,
        d: Group,
        address: Address,
        mask: u32,
    ) -> Next {
        let addresses = self.addresses(address);
        let bytes = access.bytes();
        if block.plain
            && let Some(payload) = self.load_plain(block, access.space, &addresses, bytes, mask)
        {
            self.scatter(d, access, &payload, mask);
            return Next::Advance;
        }
        block.traffic(access.space, &addresses, bytes, mask);
        let mut payload: Payload = [[0; LANES]; 4];
        for lane in lanes(mask) {
            let words = match self.place(block, pc, lane, access.space, addresses[lane], bytes) {
                Some(Place::Global(allocation, offset)) => {
                    block.observe_global(
                        self,
                        pc,
                        lane,
                        (addresses[lane], allocation, offset),
                        bytes,
                        access.strong,
                    );
                    read_global(allocation, offset, bytes)
                }
                Some(Place::Shared(at)) => {
                    block.observe_shared(self, pc, lane, at, bytes, access.strong);
                    read_bytes(&block.shared, at, bytes)
                }
                Some(Place::Local(at)) => {
                    block.observe_local(self, lane, at, bytes);
                    read_bytes(&self.local, at, bytes)
                }
                None => {
                    block.faulted(lane);
                    [0; 4]
                }
            };
            for (word, value) in payload.iter_mut().zip(words) {
                word[lane] = value;
            }
        }
        self.scatter(d, access, &payload, mask);
        block.loaded(self, pc, d, access, mask);
        Next::Advance
    }

    // Without checks, and with every lane in one allocation: no question is asked twice. `None` leaves the access to the
    // general path, which finds what is wrong with it.
    fn load_plain(
        &self,
        block: &Block<'_, '_>,
        space: Space,
        addresses: &Lanes64,
        bytes: u32,
        mask: u32,
    ) -> Option<Payload> {
        let mut payload: Payload = [[0; LANES]; 4];
        let words = bytes.div_ceil(4) as usize;
        let misaligned = u64::from(bytes - 1);
        match space {
            Space::Shared => {
                let limit = (block.shared.len() as u64).checked_sub(bytes.into())?;
                for lane in lanes(mask) {
                    let at = addresses[lane];
                    if at > limit || at & misaligned != 0 {
                        return None;
                    }
                    let value = read_bytes(&block.shared, at as usize, bytes);
                    for i in 0..words {
                        payload[i][lane] = value[i];
                    }
                }
            }
            Space::Global | Space::Const => {
                let first = addresses[mask.trailing_zeros() as usize];
                let (allocation, offset) = block.launch.memory.locate(first, bytes).ok()?;
                let base = first - offset;
                let limit = allocation.bytes - u64::from(bytes);
                for lane in lanes(mask) {
                    let offset = addresses[lane].wrapping_sub(base);
                    if offset > limit || offset & misaligned != 0 {
                        return None;
                    }
                    for i in 0..words {
                        payload[i][lane] = allocation.read_small(offset + 4 * i as u64, bytes.min(4));
                    }
                }
            }
            _ => return None,
        }
        Some(payload)
    }

    // The same for stores; checked before anything is written.
    fn store_plain(
        &self,
        block: &mut Block<'_, '_>,
        space: Space,
        (addresses, payload): (&Lanes64, &Payload),
        bytes: u32,
        mask: u32,
    ) -> Option<()> {
        let misaligned = u64::from(bytes - 1);
        let fits = |base: u64, limit: u64| {
            lanes(mask).all(|lane| {
                let offset = addresses[lane].wrapping_sub(base);
                offset <= limit && offset & misaligned == 0
            })
        };
        match space {
            Space::Shared => {
                if !fits(0, (block.shared.len() as u64).checked_sub(bytes.into())?) {
                    return None;
                }
                for lane in lanes(mask) {
                    let words = payload.map(|w| w[lane]);
                    write_bytes(&mut block.shared, addresses[lane] as usize, bytes, words);
                }
            }
            Space::Global => {
                let first = addresses[mask.trailing_zeros() as usize];
                let (allocation, offset) = block.launch.memory.locate(first, bytes).ok()?;
                let base = first - offset;
                if !fits(base, allocation.bytes - u64::from(bytes)) {
                    return None;
                }
                for lane in lanes(mask) {
                    let offset = addresses[lane] - base;
                    write_global(allocation, offset, bytes, payload.map(|w| w[lane]));
                    allocation.set_initialised(offset, bytes, u32::MAX);
                }
            }
            _ => return None,
        }
        Some(())
    }

    pub(crate) fn store(
        &mut self,
        block: &mut Block<'_, '_>,
        pc: u32,
        access: Access,
        a: Group,
        address: Address,
        mask: u32,
    ) -> Next {
        let addresses = self.addresses(address);
        let bytes = access.bytes();
        let payload = self.gather(a, access);
        if block.plain && self.store_plain(block, access.space, (&addresses, &payload), bytes, mask).is_some()
        {
            return Next::Advance;
        }
        block.traffic(access.space, &addresses, bytes, mask);
        for lane in lanes(mask) {
            let words = payload.map(|w| w[lane]);
            let valid = block.stored_bits(self, a, access, lane);
            match self.place(block, pc, lane, access.space, addresses[lane], bytes) {
                Some(Place::Global(allocation, offset)) => {
                    let at = (addresses[lane], allocation, offset);
                    let same = read_global(allocation, offset, bytes) == words;
                    block.record_global(self, pc, lane, at, bytes, (valid, access.strong, same));
                    write_global(allocation, offset, bytes, words);
                }
                Some(Place::Shared(at)) => {
                    let same = read_bytes(&block.shared, at, bytes) == words;
                    block.record_shared(self, pc, lane, at, bytes, (valid, access.strong, same));
                    write_bytes(&mut block.shared, at, bytes, words);
                }
                Some(Place::Local(at)) => {
                    block.record_local(self, at, bytes, valid);
                    write_bytes(&mut self.local, at, bytes, words);
                }
                None => {}
            }
        }
        Next::Advance
    }

    // Bytes in memory order to registers.
    fn scatter(&mut self, d: Group, access: Access, payload: &Payload, mask: u32) {
        let width = usize::from(access.width);
        for (element, &reg) in d.regs[..d.count.into()].iter().enumerate() {
            let first = element * width;
            let word = &payload[first / 4];
            if width == 8 {
                let high = &payload[first / 4 + 1];
                let value: Lanes64 = std::array::from_fn(|i| u64::from(high[i]) << 32 | u64::from(word[i]));
                self.registers.set_long(reg, mask, &value);
                continue;
            }
            let value: Lanes32 = if width == 4 {
                *word
            } else {
                let (shift, spare) = (8 * (first % 4), 32 - 8 * width);
                std::array::from_fn(|i| {
                    let raised = word[i] >> shift << spare;
                    if access.signed { (raised as i32 >> spare) as u32 } else { raised >> spare }
                })
            };
            if d.long {
                let extend = |v: u32| if access.signed { v as i32 as u64 } else { v.into() };
                self.registers.set_long(reg, mask, &value.map(extend));
            } else {
                self.registers.set_word(reg, mask, &value);
            }
        }
    }

    // Registers to bytes in memory order.
    fn gather(&self, a: Group, access: Access) -> Payload {
        let mut payload: Payload = [[0; LANES]; 4];
        let width = usize::from(access.width);
        for (element, &reg) in a.regs[..a.count.into()].iter().enumerate() {
            let first = element * width;
            if width == 8 {
                let value = self.registers.long(reg);
                payload[first / 4] = value.map(|v| v as u32);
                payload[first / 4 + 1] = value.map(|v| (v >> 32) as u32);
                continue;
            }
            let value =
                if a.long { self.registers.long(reg).map(|v| v as u32) } else { *self.registers.word(reg) };
            let keep = if width == 4 { u32::MAX } else { (1 << (8 * width)) - 1 };
            for i in 0..LANES {
                payload[first / 4][i] |= (value[i] & keep) << (8 * (first % 4));
            }
        }
        payload
    }

    pub(crate) fn load_matrix(
        &mut self,
        block: &mut Block<'_, '_>,
        pc: u32,
        transposed: bool,
        d: Group,
        address: Address,
        mask: u32,
    ) {
        let addresses = self.addresses(address);
        for matrix in 0..usize::from(d.count) {
            let mut rows = [[0; 4]; 8];
            block.traffic_matrix(&addresses, matrix);
            for (row, words) in rows.iter_mut().enumerate() {
                let lane = 8 * matrix + row;
                if let Some(Place::Shared(at)) =
                    self.place(block, pc, lane, Space::Shared, addresses[lane], 16)
                {
                    block.observe_shared(self, pc, lane, at, 16, false);
                    *words = read_bytes(&block.shared, at, 16);
                } else {
                    block.faulted(lane);
                }
            }
            let value = tensor::distribute(&rows, transposed);
            self.registers.set_word(d.regs[matrix], mask, &value);
            block.matrix_loaded(self, pc, d.regs[matrix], matrix, transposed, mask);
        }
    }

    pub(crate) fn store_matrix(
        &mut self,
        block: &mut Block<'_, '_>,
        pc: u32,
        transposed: bool,
        a: Group,
        address: Address,
        _mask: u32,
    ) {
        let addresses = self.addresses(address);
        for matrix in 0..usize::from(a.count) {
            let rows = tensor::collect(self.registers.word(a.regs[matrix]), transposed);
            block.traffic_matrix(&addresses, matrix);
            for (row, &words) in rows.iter().enumerate() {
                let lane = 8 * matrix + row;
                if let Some(Place::Shared(at)) =
                    self.place(block, pc, lane, Space::Shared, addresses[lane], 16)
                {
                    block.record_shared(self, pc, lane, at, 16, (u32::MAX, false, false));
                    write_bytes(&mut block.shared, at, 16, words);
                }
            }
        }
    }
}
