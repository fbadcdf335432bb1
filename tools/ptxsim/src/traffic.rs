//! Bank conflicts and sectors: what an access costs in shared and device memory, as numbers.

use crate::registers::Lanes64;
use crate::warp::lanes;

/// Traffic of a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Extra passes over shared memory.
    pub replays: u64,
    /// Accesses to shared memory.
    pub shared_accesses: u64,
    /// 32-byte sectors touched.
    pub sectors: u64,
    /// Sectors needed when the bytes were packed.
    pub minimum_sectors: u64,
    /// Distinct bytes.
    pub bytes: u64,
}

impl Traffic {
    /// Adds another block's.
    pub fn add(&mut self, other: &Traffic) {
        self.replays += other.replays;
        self.shared_accesses += other.shared_accesses;
        self.sectors += other.sectors;
        self.minimum_sectors += other.minimum_sectors;
        self.bytes += other.bytes;
    }

    /// One access to device memory.
    pub fn global(&mut self, addresses: &Lanes64, bytes: u32, mask: u32) {
        let mut list = [0u64; 32];
        let mut count = 0;
        for lane in lanes(mask) {
            list[count] = addresses[lane];
            count += 1;
        }
        let list = &mut list[..count];
        list.sort_unstable();
        let (mut sectors, mut distinct) = (0, 0);
        let (mut last_sector, mut last_address) = (None, None);
        for &address in &*list {
            if last_address != Some(address) {
                distinct += u64::from(bytes);
                last_address = Some(address);
            }
            if last_sector != Some(address / 32) {
                sectors += 1;
                last_sector = Some(address / 32);
            }
        }
        self.sectors += sectors;
        self.minimum_sectors += distinct.div_ceil(32);
        self.bytes += distinct;
    }

    /// One access to shared memory. Up to 4 bytes a lane go in one pass over the warp, 8 bytes in two, 16 in four.
    pub fn shared(&mut self, addresses: &Lanes64, bytes: u32, mask: u32) {
        self.shared_accesses += 1;
        let passes = bytes.div_ceil(4);
        let lanes_each = 32 / passes;
        for pass in 0..passes {
            let part = mask & (((1u64 << lanes_each) - 1) as u32) << (pass * lanes_each);
            self.replays += replays(addresses, bytes, part);
        }
    }

    /// One 8-row phase of `ldmatrix` or `stmatrix`.
    pub fn matrix(&mut self, addresses: &Lanes64, matrix: usize) {
        self.shared_accesses += 1;
        self.replays += replays(addresses, 16, 0xff << (8 * matrix));
    }
}

// 32 banks of 4 bytes: a pass serves one word of each bank, to any number of lanes.
fn replays(addresses: &Lanes64, bytes: u32, mask: u32) -> u64 {
    let mut words = [[0u64; 32]; 32];
    let mut used = [0usize; 32];
    for lane in lanes(mask) {
        for word in 0..u64::from(bytes.div_ceil(4)) {
            let word = addresses[lane] / 4 + word;
            let bank = (word % 32) as usize;
            if !words[bank][..used[bank]].contains(&word) && used[bank] < 32 {
                words[bank][used[bank]] = word;
                used[bank] += 1;
            }
        }
    }
    used.iter().max().map_or(0, |&most| (most as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(bytes: u32, address: impl Fn(u64) -> u64) -> u64 {
        let mut traffic = Traffic::default();
        traffic.shared(&std::array::from_fn(|i| address(i as u64)), bytes, u32::MAX);
        traffic.replays
    }

    #[test]
    fn bank_conflicts() {
        assert_eq!(shared(4, |i| 4 * i), 0);
        assert_eq!(shared(4, |_| 64), 0);
        assert_eq!(shared(4, |i| 8 * i), 1);
        assert_eq!(shared(4, |i| 128 * i), 31);
        assert_eq!(shared(4, |i| 132 * i), 0);
        assert_eq!(shared(8, |i| 8 * i), 0);
        assert_eq!(shared(16, |i| 16 * i), 0);
        // Rows of 64 bytes, 16 bytes each: 8 lanes of a pass share banks four to one.
        assert_eq!(shared(16, |i| 64 * i), 4 * 3);
    }

    #[test]
    fn sectors() {
        let mut traffic = Traffic::default();
        traffic.global(&std::array::from_fn(|i| 4 * i as u64), 4, u32::MAX);
        assert_eq!((traffic.sectors, traffic.minimum_sectors), (4, 4));
        traffic.global(&std::array::from_fn(|i| 4096 * i as u64), 4, u32::MAX);
        assert_eq!((traffic.sectors, traffic.minimum_sectors), (36, 8));
        traffic.global(&[64; 32], 4, 0xf);
        assert_eq!((traffic.sectors, traffic.minimum_sectors, traffic.bytes), (37, 9, 260));
    }
}
