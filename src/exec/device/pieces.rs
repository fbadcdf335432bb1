//! Which parts of the layout an optimiser step works on, in device memory.

use super::memory::Memory;
use crate::error::Result;
use crate::launch::{Device, Pointer};
use crate::ops::optimizer::cuda::{PieceTable, Pieces};
use crate::program::{Parameter, ParameterLayout};

/// The pieces of each kind of trained values, as kernels take them.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Trained parameters without a mask.
    pub plain: Pieces,
    /// Trained weights behind masks.
    pub weights: Pieces,
    /// Scores of masks.
    pub scores: Pieces,
}

/// The same on the host, and where the device has its copy.
pub struct PieceTables {
    plain: PieceTable,
    weights: PieceTable,
    scores: PieceTable,
    starts: Memory,
    lengths: Memory,
    uploaded: bool,
}

impl PieceTables {
    /// The tables of a layout.
    pub fn new(layout: &ParameterLayout) -> PieceTables {
        let table = |wanted: &dyn Fn(&Parameter) -> bool| {
            let wanted = layout.iter().map(|(_, p)| p).filter(|p| wanted(p));
            PieceTable::new(wanted.map(|p| (p.range(), p.vector)))
        };
        PieceTables {
            plain: table(&|p| p.trainable && !p.masked),
            weights: table(&|p| p.trainable && p.masked),
            // Scores never decay: as vectors.
            scores: PieceTable::new(layout.masked().map(|p| (p.range(), true))),
            starts: Memory::NONE,
            lengths: Memory::NONE,
            uploaded: false,
        }
    }

    fn all(&self) -> [&PieceTable; 3] {
        [&self.plain, &self.weights, &self.scores]
    }

    /// Copies the tables to the device, once.
    pub fn upload(&mut self, device: &mut impl Device) -> Result<()> {
        let starts: Vec<u64> = self.all().iter().flat_map(|table| table.starts.iter().copied()).collect();
        let lengths: Vec<u32> = self.all().iter().flat_map(|table| table.lengths.iter().copied()).collect();
        if self.uploaded || starts.is_empty() {
            return Ok(());
        }
        self.starts.grow(device, starts.len() * 8, "optimiser pieces")?;
        self.lengths.grow(device, lengths.len() * 4, "optimiser pieces")?;
        device.upload(self.starts.address, bytemuck::cast_slice(&starts))?;
        device.upload(self.lengths.address, bytemuck::cast_slice(&lengths))?;
        self.uploaded = true;
        Ok(())
    }

    /// What they take on the device.
    pub fn memory(&self) -> [&Memory; 2] {
        [&self.starts, &self.lengths]
    }

    /// The tables where the device has them.
    pub fn on_device(&self) -> Tables {
        self.at(self.starts.address, self.lengths.address)
    }

    /// Stand-ins for measuring.
    pub fn measuring(&self) -> Tables {
        self.at(1 << 45, 1 << 46)
    }

    fn at(&self, starts: u64, lengths: u64) -> Tables {
        let mut first = 0;
        let [plain, weights, scores] = self.all().map(|table| {
            let (starts, lengths) = (Pointer::new(starts), Pointer::new(lengths));
            let pieces = table.on_device(starts.offset(first), lengths.offset(first));
            first += table.starts.len();
            pieces
        });
        Tables { plain, weights, scores }
    }
}
