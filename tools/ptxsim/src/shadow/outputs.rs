//! Declared outputs: every element must be written exactly once, and nothing between the columns and the leading
//! dimension.

/// A matrix that the next launch must write.
#[derive(Debug, Clone)]
pub struct Expected {
    /// First element.
    pub address: u64,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub columns: u64,
    /// Elements from row to row.
    pub ld: u64,
    /// Bytes of an element.
    pub element_bytes: u64,
    counts: Vec<u8>,
}

/// What a write did to a declared output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hit {
    /// An element got its second value.
    Twice(u64, u64),
    /// The padding behind a row was written, at this column.
    Padding(u64, u64),
}

impl Expected {
    /// Nothing written yet.
    pub fn new(address: u64, rows: u64, columns: u64, ld: u64, element_bytes: u64) -> Expected {
        let counts = vec![0; (rows * columns) as usize];
        Expected { address, rows, columns, ld, element_bytes, counts }
    }

    /// Records a write of `bytes` bytes.
    pub fn write(&mut self, address: u64, bytes: u64, mut report: impl FnMut(Hit)) {
        // The padding of the last row belongs to nobody.
        let end = self.address + (((self.rows.max(1) - 1) * self.ld) + self.columns) * self.element_bytes;
        let (from, to) = (address.max(self.address), (address + bytes).min(end));
        if from >= to {
            return;
        }
        let first = (from - self.address) / self.element_bytes;
        let last = (to - 1 - self.address) / self.element_bytes;
        for element in first..=last {
            let (row, column) = (element / self.ld, element % self.ld);
            if column >= self.columns {
                report(Hit::Padding(row, column));
                continue;
            }
            let count = &mut self.counts[(row * self.columns + column) as usize];
            *count = count.saturating_add(1);
            if *count == 2 {
                report(Hit::Twice(row, column));
            }
        }
    }

    /// Number of elements never written, and the first of them.
    pub fn missing(&self) -> Option<(u64, (u64, u64))> {
        let first = self.counts.iter().position(|&c| c == 0)? as u64;
        let number = self.counts.iter().filter(|&&c| c == 0).count() as u64;
        Some((number, (first / self.columns, first % self.columns)))
    }
}
