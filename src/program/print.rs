//! A program prints itself: one line an operation, with shapes, bytes and FLOPs for a given batch.

use std::fmt::Write as _;

use super::access::Access;
use super::builder::Program;
use super::cost;
use super::op::Op;
use super::slot::{Element, Extent, Extents, SlotId, Storage};

impl Program {
    /// The listing. `extents` is the batch that the costs are given for.
    pub fn listing(&self, extents: &Extents) -> String {
        let mut text = String::new();
        let total = cost::of_program(self, extents);
        let _ = writeln!(
            text,
            "{}: {} operations, {} slots, {:.3} GFLOP, {:.1} MB moved",
            self.name(),
            self.ops().len(),
            self.slots.len(),
            total.flops as f64 / 1e9,
            total.bytes as f64 / 1e6
        );
        for (index, op) in self.ops().iter().enumerate() {
            if index == self.forward_len && index > 0 {
                let _ = writeln!(text, "-- backward --");
            }
            let cost = cost::of_op(self, op, extents);
            let _ = writeln!(
                text,
                "{index:4} {:<22} {:<60} {:>9.3} MFLOP {:>8.1} kB",
                op.name(),
                self.signature(op),
                cost.flops as f64 / 1e6,
                cost.bytes as f64 / 1e3
            );
        }
        text
    }

    /// `outputs <- inputs`, each as name and shape.
    pub fn signature(&self, op: &Op) -> String {
        let (mut outputs, mut inputs) = (Vec::new(), Vec::new());
        op.visit(|slot, access| match access {
            Access::Read => inputs.push(self.describe(slot)),
            Access::Write => outputs.push(self.describe(slot)),
            Access::Update => outputs.push(format!("+{}", self.describe(slot))),
        });
        format!("{} <- {}", outputs.join(", "), inputs.join(", "))
    }

    fn describe(&self, id: SlotId) -> String {
        let slot = self.slot(id);
        let rows = match slot.rows {
            Extent::Fixed(rows) => rows.to_string(),
            Extent::Tokens => "T".into(),
            Extent::Sequences => "B".into(),
            Extent::Boundaries => "B+1".into(),
            Extent::Targets => "R".into(),
            Extent::Samples => "S".into(),
        };
        let element = if slot.element == Element::Int { "i" } else { "" };
        let kind = match slot.storage {
            Storage::Parameter(_) => "%",
            Storage::Input => "@",
            _ => "",
        };
        format!("{kind}{}[{rows},{}]{element}", slot.name, slot.cols)
    }
}
