//! Well-formedness of a program, checked once when emission ends.
//!
//! Executors hand operations mutable and shared views of one arena at the same time. That is sound because of
//! what is checked here: a slot an operation writes shares no memory with any other slot of that operation, every
//! temporary is written before it is read, and inputs and parameters are not written by the forward pass.

use std::collections::HashSet;

use super::access::Access;
use super::builder::Program;
use super::op::Op;
use super::slot::{Element, SlotId, Storage};

pub(crate) fn validate(program: &Program) -> Result<(), String> {
    let mut written: HashSet<SlotId> = HashSet::new();
    for (index, op) in program.ops.iter().enumerate() {
        let mut problem = None;
        let mut operands: Vec<(SlotId, Access)> = Vec::new();
        op.visit(|slot, access| operands.push((slot, access)));
        for &(slot, access) in &operands {
            let storage = program.slot(program.root(slot)).storage;
            let arena = matches!(storage, Storage::Temporary | Storage::Output);
            if access != Access::Write && arena && !written.contains(&program.root(slot)) {
                problem = Some(format!("reads {} before it is written", program.slot(slot).name));
            }
            if access != Access::Read {
                if matches!(storage, Storage::Input | Storage::Parameter(_)) {
                    problem = Some(format!("writes {}, which belongs to the host", program.slot(slot).name));
                }
                if matches!(storage, Storage::Gradient(_)) && access == Access::Write {
                    problem = Some(format!("overwrites the gradient {}", program.slot(slot).name));
                }
            }
        }
        for (i, &(slot, access)) in operands.iter().enumerate() {
            if access == Access::Read {
                continue;
            }
            for (j, &(other, _)) in operands.iter().enumerate() {
                if i != j && overlap(program, slot, other) {
                    let (slot, other) = (&program.slot(slot).name, &program.slot(other).name);
                    problem = Some(format!("writes {slot}, which overlaps its operand {other}"));
                }
            }
        }
        for &(slot, access) in &operands {
            if access != Access::Read {
                written.insert(program.root(slot));
            }
        }
        if problem.is_none() {
            problem = shapes(program, op).err();
        }
        if let Some(problem) = problem {
            return Err(format!("operation {index} ({}): {problem}", op.name()));
        }
    }
    Ok(())
}

/// Columns of the root slot that `slot` covers.
fn columns(program: &Program, slot: SlotId) -> (usize, usize) {
    let cols = program.slot(slot).cols;
    match program.slot(slot).storage {
        Storage::Alias { of, column } => {
            let (start, _) = columns(program, of);
            (start + column, start + column + cols)
        }
        _ => (0, cols),
    }
}

fn overlap(program: &Program, a: SlotId, b: SlotId) -> bool {
    if program.root(a) != program.root(b) {
        return false;
    }
    let ((a0, a1), (b0, b1)) = (columns(program, a), columns(program, b));
    a0 < b1 && b0 < a1
}

/// Shape rules of the operations whose operands could disagree by an emission bug.
fn shapes(program: &Program, op: &Op) -> Result<(), String> {
    let slot = |id: SlotId| program.slot(id);
    let same = |a: SlotId, b: SlotId| {
        let (a, b) = (slot(a), slot(b));
        if a.rows == b.rows && a.cols == b.cols {
            return Ok(());
        }
        Err(format!("{} is {:?}×{} but {} is {:?}×{}", a.name, a.rows, a.cols, b.name, b.rows, b.cols))
    };
    match op {
        Op::Gemm { a, transpose_a, b, transpose_b, c, epilogue } => {
            let (a, b, c_slot) = (slot(*a), slot(*b), slot(*c));
            if !transpose_a && !transpose_b && b.rows != super::Extent::Fixed(a.cols) && b.rows != a.rows {
                return Err(format!("{} has {} columns, {} has {:?} rows", a.name, a.cols, b.name, b.rows));
            }
            if !transpose_a && *transpose_b && a.cols != b.cols {
                return Err(format!("{} has {} columns, {} has {}", a.name, a.cols, b.name, b.cols));
            }
            if *transpose_a && a.rows != b.rows {
                return Err(format!("{} has {:?} rows, {} has {:?}", a.name, a.rows, b.name, b.rows));
            }
            if !transpose_b && c_slot.cols != b.cols {
                return Err(format!(
                    "{} has {} columns, {} has {}",
                    c_slot.name, c_slot.cols, b.name, b.cols
                ));
            }
            for vector in [epilogue.bias, epilogue.neuron_mask].into_iter().flatten() {
                if slot(vector).cols != c_slot.cols {
                    return Err(format!("{} has {} columns", slot(vector).name, slot(vector).cols));
                }
            }
            for matrix in [epilogue.residual, epilogue.preactivation].into_iter().flatten() {
                same(matrix, *c)?;
            }
            Ok(())
        }
        Op::LayerNorm { x, y, .. } => same(*x, *y),
        Op::LayerNormBackward { dy, x, dx, .. } => same(*dy, *x).and(same(*dx, *x)),
        Op::Attention { q, k, v, out, shape, .. } => {
            if slot(*q).cols != shape.heads * shape.head_dim {
                return Err(format!("{} has {} columns for {shape:?}", slot(*q).name, slot(*q).cols));
            }
            same(*q, *k).and(same(*q, *v)).and(same(*q, *out))
        }
        Op::ColumnMoments { x, out } => {
            if slot(*out).rows != super::Extent::Fixed(3) || slot(*out).cols != slot(*x).cols {
                return Err(format!("{} does not hold three sums a column", slot(*out).name));
            }
            Ok(())
        }
        Op::Contrastive { x, bank, ids, bank_ids, labels, weights, losses, dx, .. } => {
            let (rows, banked) = (slot(*x).rows, slot(*bank).rows);
            if slot(*bank).cols != slot(*x).cols {
                return Err(format!("{} has not the columns of {}", slot(*bank).name, slot(*x).name));
            }
            let [labels, bank_labels] = labels.map_or([None; 2], |pair| pair.map(Some));
            let lists =
                [(Some(*ids), rows), (labels, rows), (Some(*bank_ids), banked), (bank_labels, banked)];
            for (list, rows) in lists {
                let Some(list) = list.map(slot) else { continue };
                if list.element != Element::Int || list.rows != rows {
                    return Err(format!("{} does not number {rows:?} rows", list.name));
                }
            }
            if slot(*weights).cols != 2 || slot(*losses).cols != 2 || slot(*losses).rows != rows {
                return Err(format!("{} does not hold two losses a query", slot(*losses).name));
            }
            dx.map_or(Ok(()), |dx| same(dx, *x))
        }
        Op::Add { x, y } | Op::Dropout { x, y, .. } => same(*x, *y),
        Op::Gather { x, rows, y } | Op::ScatterAdd { dy: y, rows, dx: x, .. } => {
            if slot(*rows).element != Element::Int || slot(*rows).rows != slot(*y).rows {
                return Err(format!("{} does not index {}", slot(*rows).name, slot(*y).name));
            }
            if slot(*x).cols == slot(*y).cols { Ok(()) } else { Err("columns differ".into()) }
        }
        _ => Ok(()),
    }
}
