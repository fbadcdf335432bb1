//! The figures of the report: what was kept layer by layer, bars with numbers, curves.
//!
//! Words and numbers are HTML, so that they keep their size on a phone; only the marks are drawn.

use std::fmt::Write as _;

use super::format;
use super::svg::{Svg, escape, number};
use crate::prune::masks::UnitMasks;

/// Cells of a layer's neuron strip.
const BINS: usize = 96;

/// Kept heads and neurons of every layer: a cell a head, and a strip whose shade is the share of neurons kept there.
/// The last layer is on top, as models are drawn.
pub fn kept_units(masks: &UnitMasks) -> String {
    let mut out = String::from(r#"<div class="layers">"#);
    out.push_str(
        r#"<div class="layer head"><span>layer</span><span>heads kept</span><span></span><span>neurons kept</span><span></span></div>"#,
    );
    let widest = masks.heads.iter().map(Vec::len).max().unwrap_or(0);
    for layer in (0..masks.heads.len()).rev() {
        let (heads, neurons) = (&masks.heads[layer], &masks.neurons[layer]);
        let kept = |mask: &[f32]| mask.iter().filter(|value| **value != 0.0).count();
        let (heads_kept, neurons_kept) = (kept(heads), kept(neurons));
        let _ = write!(
            out,
            r#"<div class="layer"><span class="n">{}</span>{}<span class="count">{heads_kept} of {}</span>{}<span class="count">{} of {}</span></div>"#,
            layer + 1,
            head_cells(heads, widest, layer),
            heads.len(),
            neuron_strip(neurons, layer),
            format::grouped(neurons_kept as u64),
            format::grouped(neurons.len() as u64),
        );
    }
    out.push_str("</div>");
    out
}

fn head_cells(mask: &[f32], widest: usize, layer: usize) -> String {
    let kept = mask.iter().filter(|v| **v != 0.0).count();
    let label = format!("layer {}: {kept} of {} heads kept", layer + 1, mask.len());
    let mut svg = Svg::new("cells", 12.0 * widest.max(1) as f64, 12.0, &label);
    for (head, value) in mask.iter().enumerate() {
        let class = if *value == 0.0 { "gone" } else { "kept" };
        let word = if *value == 0.0 { "removed" } else { "kept" };
        let title = format!("layer {} head {}: {word}", layer + 1, head + 1);
        svg.rect(class, [12.0 * head as f64 + 1.0, 1.0, 10.0, 10.0], &title);
    }
    svg.finish()
}

fn neuron_strip(mask: &[f32], layer: usize) -> String {
    let kept = mask.iter().filter(|v| **v != 0.0).count();
    let label = format!("layer {}: {kept} of {} neurons kept", layer + 1, mask.len());
    let mut svg = Svg::new("strip", BINS as f64, 6.0, &label).stretched();
    svg.rect("gone", [0.0, 0.0, BINS as f64, 6.0], "");
    let bins = BINS.min(mask.len());
    let width = BINS as f64 / bins.max(1) as f64;
    for bin in 0..bins {
        let range = bin * mask.len() / bins..(bin + 1) * mask.len() / bins;
        let units = range.len();
        let kept = mask[range].iter().filter(|v| **v != 0.0).count();
        if kept > 0 {
            let share = kept as f64 / units as f64;
            svg.shaded_rect("kept", [bin as f64 * width, 0.0, width, 6.0], share, "");
        }
    }
    svg.finish()
}

/// One bar of [`bars`].
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Name at its start.
    pub name: String,
    /// Length.
    pub value: f64,
    /// Number at its end.
    pub text: String,
    /// CSS class of its colour.
    pub class: String,
}

/// Horizontal bars on one scale from 0 to the longest (or to `full`).
pub fn bars(bars: &[Bar], full: Option<f64>) -> String {
    let longest = bars.iter().map(|bar| bar.value).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let full = full.unwrap_or(longest).max(f64::MIN_POSITIVE);
    let mut out = String::from(r#"<div class="bars">"#);
    for bar in bars {
        let share = if bar.value.is_finite() { (bar.value / full).clamp(0.0, 1.0) } else { 0.0 };
        let _ = write!(
            out,
            r#"<div class="bar"><span class="name">{}</span><span class="track"><span class="fill {}" style="width:{}%"></span></span><span class="value">{}</span></div>"#,
            escape(&bar.name),
            escape(&bar.class),
            number(share * 100.0),
            escape(&bar.text)
        );
    }
    out.push_str("</div>");
    out
}

/// One part of a [`stack`].
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Share of the whole.
    pub share: f64,
    /// CSS class of its colour.
    pub class: String,
    /// Shown when the pointer rests on it.
    pub title: String,
}

/// A horizontal bar cut into parts whose shares sum to at most 1.
pub fn stack(parts: &[Part]) -> String {
    let mut out = String::from(r#"<div class="stack">"#);
    for part in parts {
        let _ = write!(
            out,
            r#"<span class="{}" style="width:{}%" title="{}"></span>"#,
            escape(&part.class),
            number(part.share.clamp(0.0, 1.0) * 100.0),
            escape(&part.title)
        );
    }
    out.push_str("</div>");
    out
}

/// A curve of [`curves`].
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// CSS class of its colour.
    pub class: String,
    /// Points (x, y); those that are not finite are left out.
    pub points: Vec<[f64; 2]>,
    /// Whether each point is marked.
    pub dots: bool,
}

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;

/// Curves of `y_name` over a common x, with ticks at round numbers, or nothing if there is nothing to draw.
pub fn curves(curves: &[Curve], x_name: &str, y_name: &str) -> String {
    let finite = |p: &&[f64; 2]| p[0].is_finite() && p[1].is_finite();
    let points: Vec<[f64; 2]> = curves.iter().flat_map(|c| c.points.iter().filter(finite).copied()).collect();
    let Some(first) = points.first() else { return String::new() };
    let range = |axis: usize| {
        let start = [first[axis]; 2];
        points.iter().fold(start, |[low, high], p| [low.min(p[axis]), high.max(p[axis])])
    };
    let x_ticks = ticks(range(0), 5);
    let y_ticks = ticks(range(1), 4);
    let [x_low, x_high] = range(0);
    let x_low = if x_low <= 0.25 * x_high { 0.0 } else { x_low };
    let y_low = y_ticks[0].min(range(1)[0]);
    let y_high = y_ticks[y_ticks.len() - 1].max(range(1)[1]);
    let x = |v: f64| LEFT + (v - x_low) / (x_high - x_low).max(1e-12) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| HEIGHT - BOTTOM - (v - y_low) / (y_high - y_low).max(1e-12) * (HEIGHT - TOP - BOTTOM);

    let caption = format!("{y_name} by {x_name}");
    let mut svg = Svg::new("chart", WIDTH, HEIGHT, &caption);
    let y_digits = digits(&y_ticks);
    for tick in &y_ticks {
        svg.line("grid", [LEFT, y(*tick)], [WIDTH - RIGHT, y(*tick)]);
        svg.text("tick", [LEFT - 6.0, y(*tick) + 4.0], "end", format!("{tick:.y_digits$}"));
    }
    let x_digits = digits(&x_ticks);
    for tick in x_ticks.iter().filter(|t| **t >= x_low - 1e-9 && **t <= x_high + 1e-9) {
        svg.text("tick", [x(*tick), HEIGHT - 10.0], "middle", format!("{tick:.x_digits$}"));
    }
    for curve in curves {
        let points: Vec<[f64; 2]> = curve.points.iter().filter(finite).map(|p| [x(p[0]), y(p[1])]).collect();
        svg.polyline(&format!("curve {}", curve.class), &points);
        if curve.dots {
            for (at, p) in points.iter().zip(curve.points.iter().filter(finite)) {
                let title = format!("{}, {x_name} {}: {}", curve.name, number(p[0]), format::metric(p[1]));
                svg.dot(&format!("dot {}", curve.class), *at, 3.0, &title);
            }
        }
    }
    let mut out = svg.finish();
    let _ = write!(out, r#"<p class="axis">{}</p>"#, escape(&caption));
    out
}

/// Colours of the style sheet for things in an order of their own.
const COLOURS: usize = 10;

/// CSS class of the colour of the `index`-th of several things; more than there are colours share them.
pub fn nth_class(index: usize) -> String {
    format!("m{}", index % COLOURS)
}

/// Names and colours of curves or bars.
pub fn legend<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::from(r#"<p class="legend">"#);
    for (name, class) in entries {
        let _ = write!(out, r#"<span><i class="{}"></i>{}</span>"#, escape(class), escape(name));
    }
    out.push_str("</p>");
    out
}

/// About `count` round numbers that enclose `[low, high]`: 1, 2 or 5 times a power of ten apart.
fn ticks([low, high]: [f64; 2], count: usize) -> Vec<f64> {
    let span = if high > low { high - low } else { low.abs().max(1.0) };
    let raw = span / count as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw * 0.999).unwrap_or(raw);
    let first = (low / step).floor() as i64;
    let last = ((high / step).ceil() as i64).max(first + 1);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Decimals that tell these ticks apart.
fn digits(ticks: &[f64]) -> usize {
    let step = ticks[1] - ticks[0];
    (-step.log10().floor()).clamp(0.0, 9.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        for [low, high] in [[0.0, 1.0], [0.31, 0.69], [2.0, 2.0], [0.0, 0.0], [812.0, 2400.0], [-3.0, 5.0]] {
            let ticks = ticks([low, high], 4);
            assert!(ticks.len() >= 2 && ticks.len() <= 8, "{low} {high} {ticks:?}");
            assert!(ticks[0] <= low && ticks[ticks.len() - 1] >= high, "{low} {high} {ticks:?}");
        }
        assert_eq!(digits(&[0.25, 0.30]), 2);
    }

    #[test]
    fn a_strip_shows_every_neuron_once() {
        // 100 neurons in 96 cells: some cells hold two, all together hold 100.
        let (units, bins) = (100, BINS.min(100));
        let total: usize = (0..bins).map(|b| (b + 1) * units / bins - b * units / bins).sum();
        assert_eq!(total, units);
        assert!(neuron_strip(&[], 0).contains("0 of 0"));
        assert!(curves(&[], "step", "").is_empty());
    }
}
