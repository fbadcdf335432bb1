//! What a launch did, in numbers that a test can assert without a GPU.

use std::collections::BTreeMap;

use serde::Serialize;

/// Counts of one launch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Instructions executed by warps, each counted once per warp.
    pub warp_instructions: u64,
    /// The same summed over active lanes.
    pub lane_instructions: u64,
    /// Warp instructions by opcode as spelled.
    pub by_opcode: BTreeMap<String, u64>,
    /// Warp-wide `mma.sync` operations.
    pub mma: u64,
    /// Extra passes over shared memory because lanes met in a bank (needs `Checks::traffic`).
    pub bank_conflict_replays: u64,
    /// Accesses to shared memory, each a warp instruction or an 8-row phase of `ldmatrix` (needs `Checks::traffic`).
    pub shared_accesses: u64,
    /// 32-byte sectors of device memory touched, summed over accesses (needs `Checks::traffic`).
    pub sectors: u64,
    /// Sectors that the same accesses would touch with their bytes packed (needs `Checks::traffic`).
    pub minimum_sectors: u64,
    /// Bytes that lanes asked for from device memory, duplicates counted once per access (needs `Checks::traffic`).
    pub global_bytes: u64,
}
