//! Values between the host and the slots of a prepared program.
//!
//! The host sees dense rows of f32, or of f64 that is rounded; a slot on the device has f32 or bf16, and padding after its
//! rows. Padding belongs to the slot and is written with it; what stands beside an alias does not and keeps its values. A
//! write that does not fit is an error before anything is copied, and one of a parameter makes the copy that products read
//! stale.

use half::bf16;

use super::binding::Binding;
use super::{DeviceExecutor, ProgramId};
use crate::error::{Error, Result};
use crate::launch::{Device, ElementType, Matrix};
use crate::program::{Element, Extents, SlotId, Storage};

impl<D: Device> DeviceExecutor<D> {
    /// Writes the first rows of a float slot.
    pub(super) fn write_floats(&mut self, id: ProgramId, slot: SlotId, data: &[f32]) -> Result<()> {
        let (program, capacity) = (&self.programs[id.0].program, self.programs[id.0].plan.capacity);
        if program.slot(slot).storage == Storage::Input {
            let matrix = self.slot(id, slot, &capacity)?;
            let whole =
                data.len().is_multiple_of(matrix.cols.max(1)) && data.len() <= matrix.rows * matrix.cols;
            // Candidates of contrastive losses are tens of megabytes a step: rows without padding go as they are.
            if whole && matrix.element == ElementType::F32 && matrix.ld == matrix.cols {
                return self.device.upload(matrix.address, bytemuck::cast_slice(data));
            }
        }
        self.write_with(id, slot, data.len(), |i| data[i])
    }

    /// [`DeviceExecutor::write_floats`] of `len` values that `at` gives.
    pub(super) fn write_with(
        &mut self,
        id: ProgramId,
        slot: SlotId,
        len: usize,
        at: impl Fn(usize) -> f32,
    ) -> Result<()> {
        let prepared = &self.programs[id.0];
        let capacity = prepared.plan.capacity;
        let description = prepared.program.slot(slot).clone();
        let matrix = self.slot(id, slot, &capacity)?;
        let cols = matrix.cols;
        if !len.is_multiple_of(cols.max(1)) || len > matrix.rows * cols {
            let message = format!("{len} values do not fill up to {} rows of {cols}", matrix.rows);
            return Err(Error::shape(&description.name, message));
        }
        let rows = len.checked_div(cols).unwrap_or(0);
        let alias = matches!(description.storage, Storage::Alias { .. });
        let stride = if alias { cols } else { matrix.ld };
        let mut bytes = Vec::with_capacity(rows * stride * matrix.element.bytes());
        for row in 0..rows {
            for col in 0..stride {
                let value = if col < cols { at(row * cols + col) } else { 0.0 };
                match matrix.element {
                    ElementType::F32 => bytes.extend(value.to_le_bytes()),
                    ElementType::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                }
            }
        }
        if alias {
            for (row, data) in bytes.chunks_exact(stride * matrix.element.bytes()).enumerate() {
                self.device
                    .upload(matrix.address + (row * matrix.ld * matrix.element.bytes()) as u64, data)?;
            }
        } else {
            self.device.upload(matrix.address, &bytes)?;
        }
        if matches!(description.storage, Storage::Parameter(_)) {
            self.shadow_is_stale = true;
        }
        Ok(())
    }

    /// Writes the first elements of an integer slot.
    pub(super) fn write_integers(&mut self, id: ProgramId, slot: SlotId, data: &[i32]) -> Result<()> {
        let prepared = &self.programs[id.0];
        let description = prepared.program.slot(slot);
        let capacity = prepared.plan.capacity.of(description.rows) * description.cols;
        if description.element != Element::Int || data.len() > capacity {
            let message = format!("{} integers do not fit {capacity}", data.len());
            return Err(Error::shape(&description.name, message));
        }
        let address = prepared.ints.address + prepared.plan.place(slot).offset as u64 * 4;
        self.device.upload(address, bytemuck::cast_slice(data))
    }

    /// Reads a float slot of a batch of `extents`.
    pub(super) fn read_floats(
        &self,
        id: ProgramId,
        slot: SlotId,
        extents: &Extents,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        out.clear();
        let matrix = self.slot(id, slot, extents)?;
        if matrix.element != ElementType::F32 || matrix.is_empty() {
            return self.read_with(id, slot, extents, |value| out.push(value));
        }
        // Similarities are tens of megabytes: straight to where they are wanted, then closed up over the padding.
        out.resize((matrix.rows - 1) * matrix.ld + matrix.cols, 0.0);
        self.device.download(matrix.address, bytemuck::cast_slice_mut(out))?;
        if matrix.ld > matrix.cols {
            for row in 1..matrix.rows {
                out.copy_within(row * matrix.ld..row * matrix.ld + matrix.cols, row * matrix.cols);
            }
            out.truncate(matrix.rows * matrix.cols);
        }
        Ok(())
    }

    /// [`DeviceExecutor::read_floats`], value by value in row order.
    pub(super) fn read_with(
        &self,
        id: ProgramId,
        slot: SlotId,
        extents: &Extents,
        mut put: impl FnMut(f32),
    ) -> Result<()> {
        let matrix = self.slot(id, slot, extents)?;
        if matrix.is_empty() {
            return Ok(());
        }
        let size = matrix.element.bytes();
        let mut bytes = vec![0u8; ((matrix.rows - 1) * matrix.ld + matrix.cols) * size];
        self.device.download(matrix.address, &mut bytes)?;
        for row in bytes.chunks(matrix.ld * size) {
            for value in row[..matrix.cols * size].chunks_exact(size) {
                put(match *value {
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                    [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
                    _ => unreachable!("elements have two or four bytes"),
                });
            }
        }
        Ok(())
    }

    /// Where the device has a float slot, and its rows in a batch of `extents`.
    fn slot(&self, id: ProgramId, slot: SlotId, extents: &Extents) -> Result<Matrix> {
        let prepared = &self.programs[id.0];
        let description = prepared.program.slot(slot);
        if description.element == Element::Int {
            return Err(Error::shape(&description.name, "is an integer slot"));
        }
        let binding = Binding {
            program: &prepared.program,
            plan: &prepared.plan,
            types: &prepared.types,
            extents,
            addresses: self.addresses(prepared),
        };
        Ok(binding.matrix(slot))
    }
}
