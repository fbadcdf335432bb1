//! The epilogue, applied to a few finished rows at a time, while they are in cache.

use super::super::Epilogue;
use crate::ops::View;
use crate::ops::activation::{self, Activation};
use crate::ops::dropout::AppliedDropout;
use std::ops::Range;

/// The part of an [`Epilogue`] that follows the sums, shareable between tasks that own disjoint parts of C.
pub(super) struct Finish<'a> {
    bias: Option<&'a [f32]>,
    activation: Option<Activation>,
    /// First element and leading dimension.
    preactivation: Option<(*mut f32, usize)>,
    neuron_mask: Option<&'a [f32]>,
    dropout: Option<AppliedDropout>,
    residual: Option<View<'a, f32>>,
}

impl<'a> Finish<'a> {
    pub(super) fn new(epilogue: Epilogue<'a, f32>) -> Finish<'a> {
        Finish {
            bias: epilogue.bias,
            activation: epilogue.activation,
            preactivation: epilogue.preactivation.map(|mut view| (view.as_mut_ptr(), view.ld())),
            neuron_mask: epilogue.neuron_mask,
            dropout: epilogue.dropout,
            residual: epilogue.residual,
        }
    }

    /// Whether there is nothing to do but move live columns to their places.
    fn is_trivial(&self) -> bool {
        self.bias.is_none()
            && self.activation.is_none()
            && self.preactivation.is_none()
            && self.neuron_mask.is_none()
            && self.dropout.is_none()
            && self.residual.is_none()
    }

    /// Finishes `rows` × `columns` of C. With `live` (rising, inside `columns`), the sums of the live columns stand at the front
    /// of each row; they are spread to their places and the dead ones become 0.
    ///
    /// # Safety
    /// `c` with `ldc` is C; nothing else touches this rectangle of C and of the preactivation during the call.
    #[inline(always)]
    pub(super) unsafe fn apply(
        &self,
        c: *mut f32,
        ldc: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        live: Option<&[u32]>,
    ) {
        if live.is_none() && self.is_trivial() {
            return;
        }
        let count = live.map_or(columns.len(), <[u32]>::len);
        for i in rows {
            // SAFETY: row i of the rectangle, which is ours alone.
            let row =
                unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc + columns.start), columns.len()) };
            let sums = &mut row[..count];
            if let Some(bias) = self.bias {
                combine(sums, bias, &columns, live, |z, bias| z + bias);
            }
            if let Some((data, ld)) = self.preactivation {
                // SAFETY: the same rectangle of the preactivation, ours alone too.
                let z = unsafe {
                    std::slice::from_raw_parts_mut(data.add(i * ld + columns.start), columns.len())
                };
                z[..count].copy_from_slice(sums);
                spread(z, columns.start, live);
            }
            if let Some(kind) = self.activation {
                activation::cpu::forward_in_place(kind, sums);
            }
            if let Some(mask) = self.neuron_mask {
                combine(sums, mask, &columns, live, |y, mask| y * mask);
            }
            spread(row, columns.start, live);
            if let Some(dropout) = self.dropout {
                dropout.scale_row(i, columns.start, row);
            }
            if let Some(residual) = self.residual {
                for (y, &residual) in row.iter_mut().zip(&residual.row(i)[columns.clone()]) {
                    *y += residual;
                }
            }
        }
    }
}

/// `values[i] = f(values[i], vector[column of i])`.
#[inline(always)]
fn combine(
    values: &mut [f32],
    vector: &[f32],
    columns: &Range<usize>,
    live: Option<&[u32]>,
    f: impl Fn(f32, f32) -> f32,
) {
    match live {
        None => values
            .iter_mut()
            .zip(&vector[columns.clone()])
            .for_each(|(value, &other)| *value = f(*value, other)),
        Some(live) => {
            values
                .iter_mut()
                .zip(live)
                .for_each(|(value, &column)| *value = f(*value, vector[column as usize]));
        }
    }
}

/// Moves the first `live.len()` values to their columns, 0 elsewhere. From the back, so that none is overwritten unread.
#[inline(always)]
fn spread(row: &mut [f32], first_column: usize, live: Option<&[u32]>) {
    let Some(live) = live else { return };
    let mut end = row.len();
    for (i, &column) in live.iter().enumerate().rev() {
        let place = column as usize - first_column;
        row[place + 1..end].fill(0.0);
        row[place] = row[i];
        end = place;
    }
    row[..end].fill(0.0);
}
