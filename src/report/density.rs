//! What unstructured pruning keeps, layer by layer, matrix by matrix and head by head, side by side for several models.
//!
//! The figures are those of SMP (Jiang et al. 2023, figures 2 and 3): fractions of weights that remain. Every model of a
//! comparison is drawn on one scale, from 0 to the largest fraction there is.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::figures::{Curve, curves, legend, nth_class};
use super::format;
use super::svg::{Svg, escape};
use super::table::Table;
use crate::model::{Architecture, MatrixKind, WeightMask, WeightMasks};
use crate::program::WeightOrder;

/// Kept weights of one matrix.
#[derive(Clone, PartialEq, Debug)]
pub struct MatrixDensity {
    /// Layer, from 0.
    pub layer: usize,
    /// What the matrix does.
    pub kind: MatrixKind,
    /// Weights kept.
    pub kept: usize,
    /// Weights.
    pub total: usize,
    /// Weights kept of every head: of its rows of the query, key and value projections, of its columns of the attention
    /// output projection. Empty for the feed-forward matrices.
    pub heads: Vec<usize>,
}

/// Kept weights of a model.
#[derive(Clone, PartialEq, Debug)]
pub struct Density {
    /// What it is of, for tables and legends.
    pub name: String,
    /// Matrices of the layers, in the model's order.
    pub matrices: Vec<MatrixDensity>,
    layers: usize,
}

/// Columns of the tables.
const KINDS: [MatrixKind; 7] = [
    MatrixKind::Query,
    MatrixKind::Key,
    MatrixKind::Value,
    MatrixKind::QueryKeyValue,
    MatrixKind::AttentionOutput,
    MatrixKind::Up,
    MatrixKind::Down,
];

fn kind_name(kind: MatrixKind) -> &'static str {
    match kind {
        MatrixKind::Query => "query",
        MatrixKind::Key => "key",
        MatrixKind::Value => "value",
        MatrixKind::QueryKeyValue => "q, k, v",
        MatrixKind::AttentionOutput => "output",
        MatrixKind::Up => "up",
        MatrixKind::Down => "down",
    }
}

fn share(kept: usize, total: usize) -> f64 {
    if total == 0 { 0.0 } else { kept as f64 / total as f64 }
}

impl Density {
    /// Counts what `masks` keep of a model; a matrix without a mask is kept whole.
    pub fn of(name: impl Into<String>, architecture: &Architecture, masks: &WeightMasks) -> Density {
        let matrices = architecture.layer_matrices();
        let count = |matrix: &crate::model::LayerMatrix| {
            let parameter = architecture.layout.get(matrix.id);
            let mask = masks.find(&architecture.mask_name(matrix.id));
            let heads = architecture.config.layers[matrix.layer].heads;
            let order = architecture.parameters.order_of(matrix.id);
            MatrixDensity {
                layer: matrix.layer,
                kind: matrix.kind,
                kept: mask.map_or(parameter.len(), WeightMask::kept),
                total: parameter.len(),
                heads: by_head(matrix.kind, order, heads, [parameter.rows, parameter.cols], mask),
            }
        };
        let layers = architecture.config.layers.len();
        Density { name: name.into(), matrices: matrices.iter().map(count).collect(), layers }
    }

    /// Fraction of all matrices' weights that is kept.
    pub fn kept(&self) -> f64 {
        self.share_of(|_| true).unwrap_or(0.0)
    }

    /// Fraction kept of the matrices that `of` chooses; `None` if there are none.
    fn share_of(&self, of: impl Fn(&MatrixDensity) -> bool) -> Option<f64> {
        let chosen = || self.matrices.iter().filter(|matrix| of(matrix));
        let sum = |part: fn(&MatrixDensity) -> usize| chosen().map(part).sum::<usize>();
        chosen().next().map(|_| share(sum(|m| m.kept), sum(|m| m.total)))
    }

    /// Fraction kept of layer `layer`; of one kind of its matrices; `None` where it has none.
    pub fn layer(&self, layer: usize, kind: Option<MatrixKind>) -> Option<f64> {
        self.share_of(|matrix| matrix.layer == layer && kind.is_none_or(|kind| matrix.kind == kind))
    }

    /// Fraction kept of every head of layer `layer`, over its attention matrices.
    pub fn heads(&self, layer: usize) -> Vec<f64> {
        let of_layer = || self.matrices.iter().filter(|m| m.layer == layer && !m.heads.is_empty());
        let heads = of_layer().map(|matrix| matrix.heads.len()).next().unwrap_or(0);
        let total: usize = of_layer().map(|matrix| matrix.total / heads.max(1)).sum();
        (0..heads).map(|head| share(of_layer().map(|matrix| matrix.heads[head]).sum(), total)).collect()
    }

    fn kinds(&self) -> Vec<MatrixKind> {
        KINDS.into_iter().filter(|kind| self.matrices.iter().any(|matrix| matrix.kind == *kind)).collect()
    }

    /// Every number, for the run record.
    pub fn to_json(&self) -> Value {
        let matrices: Vec<Value> = self
            .matrices
            .iter()
            .map(|m| {
                let kind = kind_name(m.kind);
                json!({ "layer": m.layer, "matrix": kind, "kept": m.kept, "total": m.total, "heads": m.heads })
            })
            .collect();
        json!({ "name": self.name, "kept": self.kept(), "matrices": matrices })
    }
}

/// Weights kept of every head's part of an attention matrix: of its outputs in what leads into heads, of its inputs in
/// what leads out of them. In a fused matrix the heads of query, key and value follow each other.
fn by_head(
    kind: MatrixKind,
    order: WeightOrder,
    heads: usize,
    shape: [usize; 2],
    mask: Option<&WeightMask>,
) -> Vec<usize> {
    let (outputs, parts) = match kind {
        MatrixKind::Query | MatrixKind::Key | MatrixKind::Value => (true, 1),
        MatrixKind::QueryKeyValue => (true, 3),
        MatrixKind::AttentionOutput => (false, 1),
        MatrixKind::Up | MatrixKind::Down => return Vec::new(),
    };
    let by_row = outputs == (order == WeightOrder::OutIn);
    let [rows, cols] = shape;
    let head_dim = if by_row { rows } else { cols } / (heads * parts);
    let mut kept = vec![0; heads];
    for index in (0..rows * cols).filter(|&index| mask.is_none_or(|mask| mask.keeps(index))) {
        let along = if by_row { index / cols } else { index % cols };
        kept[along / head_dim % heads] += 1;
    }
    kept
}

/// Tables for the terminal.
pub fn text(densities: &[Density], styled: bool) -> String {
    let mut out = String::new();
    for density in densities {
        let kinds = density.kinds();
        let names: Vec<String> = kinds.iter().map(|kind| format!("{}>", kind_name(*kind))).collect();
        let heads: Vec<&str> = ["layer>", "kept>"]
            .into_iter()
            .chain(names.iter().map(String::as_str))
            .chain(["heads"])
            .collect();
        let mut table = Table::new(&heads);
        for layer in 0..density.layers {
            let cell = |kind: Option<&MatrixKind>| {
                density.layer(layer, kind.copied()).map_or("–".to_string(), format::percent)
            };
            let of_heads: Vec<String> =
                density.heads(layer).iter().map(|share| format!("{:.1}", 100.0 * share)).collect();
            let numbers = std::iter::once(cell(None)).chain(kinds.iter().map(|kind| cell(Some(kind))));
            table.row(std::iter::once((layer + 1).to_string()).chain(numbers).chain([of_heads.join(" ")]));
        }
        let _ = writeln!(
            out,
            "{}: {} of the layers' weights are kept",
            density.name,
            format::percent(density.kept())
        );
        let _ = writeln!(out, "{}", table.render(styled));
    }
    if densities.len() > 1 {
        let names: Vec<String> = densities.iter().map(|density| format!("{}>", density.name)).collect();
        let mut table = Table::new(
            &std::iter::once("layer>").chain(names.iter().map(String::as_str)).collect::<Vec<_>>(),
        );
        for layer in 0..densities.iter().map(|density| density.layers).max().unwrap_or(0) {
            let cells = densities
                .iter()
                .map(|density| density.layer(layer, None).map_or("–".to_string(), format::percent));
            table.row(std::iter::once((layer + 1).to_string()).chain(cells));
        }
        out.push_str("weights kept by layer\n");
        out.push_str(&table.render(styled));
    }
    out
}

const CELL: [f64; 2] = [46.0, 18.0];
const HEAD: f64 = 18.0;
const LEFT: f64 = 30.0;
const TOP: f64 = 40.0;

/// One drawing of all models below each other: layers by matrices, and layers by heads, darker where more is kept.
fn drawing(densities: &[Density]) -> Svg {
    let fractions = densities.iter().flat_map(|density| {
        let layers = 0..density.layers;
        let matrices = density.matrices.iter().map(|matrix| share(matrix.kept, matrix.total));
        matrices.chain(layers.flat_map(|layer| density.heads(layer))).collect::<Vec<f64>>()
    });
    let full = fractions.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let widest = |of: &dyn Fn(&Density) -> usize| densities.iter().map(of).max().unwrap_or(0) as f64;
    let matrices = LEFT + CELL[0] * (1.0 + widest(&|density| density.kinds().len()));
    let heads =
        widest(&|density| (0..density.layers).map(|layer| density.heads(layer).len()).max().unwrap_or(0));
    let block = |density: &Density| TOP + CELL[1] * density.layers as f64 + 14.0;
    let height: f64 = densities.iter().map(block).sum();
    let mut svg = Svg::new("density", matrices + LEFT + HEAD * heads + 10.0, height, "weights kept by layer");
    let mut top = 0.0;
    for density in densities {
        let title = format!("{}: {} kept", density.name, format::percent(density.kept()));
        svg.text("name", [LEFT, top + 14.0], "start", title);
        let kinds = density.kinds();
        let columns = std::iter::once(None).chain(kinds.iter().copied().map(Some));
        for (column, kind) in columns.enumerate() {
            let x = LEFT + CELL[0] * column as f64;
            let name = kind.map_or("layer", kind_name);
            svg.text("tick", [x + CELL[0] / 2.0, top + TOP - 6.0], "middle", name);
            for layer in 0..density.layers {
                let Some(kept) = density.layer(layer, kind) else { continue };
                // The last layer is on top, as models are drawn.
                let y = top + TOP + CELL[1] * (density.layers - 1 - layer) as f64;
                let title = format!("layer {} {name}: {}", layer + 1, format::percent(kept));
                svg.shaded_rect(
                    "kept",
                    [x + 1.0, y + 1.0, CELL[0] - 2.0, CELL[1] - 2.0],
                    kept / full,
                    &title,
                );
                let class = if kept / full > 0.6 { "on" } else { "tick" };
                let number = if kept < 0.0995 {
                    format!("{:.1}", 100.0 * kept)
                } else {
                    format!("{:.0}", 100.0 * kept)
                };
                svg.text(class, [x + CELL[0] / 2.0, y + 13.0], "middle", number);
            }
        }
        svg.text("tick", [matrices + LEFT, top + TOP - 6.0], "start", "heads");
        for layer in 0..density.layers {
            let y = top + TOP + CELL[1] * (density.layers - 1 - layer) as f64;
            svg.text("tick", [LEFT - 6.0, y + 13.0], "end", layer + 1);
            for (head, kept) in density.heads(layer).into_iter().enumerate() {
                let x = matrices + LEFT + HEAD * head as f64;
                let title = format!("layer {} head {}: {}", layer + 1, head + 1, format::percent(kept));
                svg.shaded_rect("kept", [x + 1.0, y + 1.0, HEAD - 2.0, CELL[1] - 2.0], kept / full, &title);
            }
        }
        top += block(density);
    }
    svg
}

/// The drawing as a file of its own.
pub fn svg(densities: &[Density]) -> String {
    drawing(densities).standalone(
        "text{font:11px sans-serif;fill:#5f6964}.name{font-size:13px;font-weight:600}.on{fill:#fff}\
         .kept{fill:#2c6e54}",
    )
}

/// The drawing and the curves by layer as a page.
pub fn html(title: &str, densities: &[Density]) -> String {
    let lines: Vec<Curve> = densities
        .iter()
        .enumerate()
        .map(|(index, density)| Curve {
            name: density.name.clone(),
            class: nth_class(index),
            points: (0..density.layers)
                .filter_map(|layer| Some([(layer + 1) as f64, 100.0 * density.layer(layer, None)?]))
                .collect(),
            dots: true,
        })
        .collect();
    let mut body =
        format!("<header><h1>{}</h1></header>\n<section><h2>Weights kept by layer</h2>", escape(title));
    body.push_str(&curves(&lines, "layer", "weights kept, %"));
    body.push_str(&legend(lines.iter().map(|line| (line.name.as_str(), line.class.as_str()))));
    body.push_str("</section>\n<section><h2>By matrix and by head</h2><p class=\"hint\">Per cent of the weights. The \
                   darker, the more is kept, on one scale; the last layer is on top. A head's share is over its rows of \
                   the query, key and value projections and its columns of the output projection.</p>");
    body.push_str(&drawing(densities).finish());
    body.push_str("</section>\n");
    super::page::page(title, &body)
}
