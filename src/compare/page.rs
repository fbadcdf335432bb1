//! The page of a comparison: one file, no script, no network.

use std::fmt::Write as _;

use super::grid::DENSE;
use super::results::{Results, Row, Summary};
use crate::prune::UnitMasks;
use crate::prune::overlap::overlap;
use crate::report::figures::{Bar, Curve, bars, curves, kept_units, legend};
use crate::report::page::{page, table, words};
use crate::report::svg::escape;
use crate::report::{format, table::Table};

/// Colours of methods; more methods than colours share them.
const COLOURS: usize = 10;

/// Missing cells that a terminal names.
const SHOWN_MISSING: usize = 8;

/// The page.
pub fn render(results: &Results) -> String {
    let mut body = String::new();
    let title = format!("{}, pruned by {}", short(&results.model), methods(results).join(", "));
    let seeds = match results.summary.iter().map(|s| s.seeds).max().unwrap_or(0) {
        1 => "one seed".to_string(),
        seeds => format!("means over {seeds} seeds"),
    };
    let _ = write!(
        body,
        "<header><h1>{}</h1><p class=\"lead\">{seeds} · secateur {} · {}</p></header>",
        escape(&title),
        env!("CARGO_PKG_VERSION"),
        escape(format::utc_now().replace('T', " ").replace('Z', " UTC"))
    );
    missing(&mut body, results);
    qualities(&mut body, results);
    quality_curves(&mut body, results);
    times(&mut body, results);
    kept(&mut body, results);
    overlaps(&mut body, results);
    page(title, &body)
}

/// The table on a terminal: a line for each method and budget, a column for each task.
pub fn text(results: &Results, styled: bool) -> String {
    let tasks = tasks(results);
    let heads: Vec<String> = ["method".to_string(), "FLOPs kept>".into()]
        .into_iter()
        .chain(tasks.iter().map(|task| format!("{task} {}>", words(metric(results, task)))))
        .collect();
    let mut out = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
    for line in lines(results) {
        out.row(line);
    }
    let mut text = out.render(styled);
    for (what, names) in [("out of reach", &results.out_of_reach), ("not run", &results.missing)] {
        if names.is_empty() {
            continue;
        }
        let (count, shown) = (names.len(), names.iter().take(SHOWN_MISSING));
        let shown = shown.map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if count > SHOWN_MISSING { ", … (all of them are in compare.json)" } else { "" };
        let _ = writeln!(text, "{what} ({count}): {shown}{more}");
    }
    text
}

/// Cells of the table: method, budget, mean ± deviation of each task.
fn lines(results: &Results) -> Vec<Vec<String>> {
    let tasks = tasks(results);
    let mut lines = Vec::new();
    for method in methods_and_dense(results) {
        let mut keeps: Vec<f64> = Vec::new();
        for found in results.summary.iter().filter(|s| s.method == method) {
            if !keeps.contains(&found.keep) {
                keeps.push(found.keep);
            }
        }
        for keep in keeps {
            let mut line = vec![method.clone(), format::percent(keep)];
            for task in &tasks {
                let found = results.of(task, &method).find(|s| s.keep == keep);
                line.push(found.map_or("—".into(), quality));
            }
            lines.push(line);
        }
    }
    lines
}

fn missing(out: &mut String, results: &Results) {
    let list = |names: &[String], what: &str| match names {
        [] => String::new(),
        names => {
            let (count, names) = (names.len(), escape(names.join(", ")));
            format!("<details><summary>{count} {what}</summary>{names}</details>")
        }
    };
    let missing = list(&results.missing, "not run");
    let out_of_reach = list(&results.out_of_reach, "out of the method's reach");
    if !missing.is_empty() || !out_of_reach.is_empty() {
        let _ =
            write!(out, "<section class=\"warnings\"><h2>Not there</h2>{missing}{}</section>", out_of_reach);
    }
}

/// For each task a table: a line for each method, a column for each budget, the best of a budget in bold.
fn qualities(out: &mut String, results: &Results) {
    out.push_str(
        "<section><h2>Quality</h2><p class=\"hint\">By the fraction of FLOPs asked for, on the development rows: mean ± \
         standard deviation where there are several seeds. The best of each column is bold; a dash is out of the method's \
         reach or has not run.</p>",
    );
    for task in tasks(results) {
        let (metric, dense) = (words(metric(results, &task)), results.of(&task, DENSE).next());
        let dense = dense.map_or(String::new(), |found| format!(", dense {}", quality(found)));
        let _ = write!(out, "<h3>{}: {}{}</h3>", escape(&task), escape(&metric), escape(&dense));
        let mut keeps: Vec<f64> = Vec::new();
        for found in results.summary.iter().filter(|s| s.task == task && s.method != DENSE) {
            if !keeps.contains(&found.keep) {
                keeps.push(found.keep);
            }
        }
        keeps.sort_by(|a, b| b.total_cmp(a));
        let larger = results.rows.iter().find(|row| row.task == task).is_none_or(|row| row.larger_is_better);
        let better = |a: f64, b: f64| if larger { a.max(b) } else { a.min(b) };
        let best: Vec<Option<f64>> = (keeps.iter())
            .map(|keep| {
                let same =
                    results.summary.iter().filter(|s| s.task == task && s.method != DENSE && s.keep == *keep);
                same.map(|s| s.mean).filter(|mean| mean.is_finite()).reduce(better)
            })
            .collect();
        out.push_str("<div class=\"scroll\"><table><thead><tr><th>method</th>");
        for keep in &keeps {
            let _ = write!(out, "<th class=\"r\">{}</th>", escape(format::percent(*keep)));
        }
        out.push_str("</tr></thead><tbody>");
        for method in methods(results) {
            let _ = write!(out, "<tr><td>{}</td>", escape(&method));
            for (keep, best) in keeps.iter().zip(&best) {
                let found = results.of(&task, &method).find(|s| s.keep == *keep);
                let text = found.map_or("—".into(), quality);
                let text = escape(&text);
                let bold = found.is_some_and(|s| Some(s.mean) == *best);
                let _ = match bold {
                    true => write!(out, "<td class=\"r\"><b>{text}</b></td>"),
                    false => write!(out, "<td class=\"r\">{text}</td>"),
                };
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
    }
    out.push_str("</section>\n");
}

/// Mean, and deviation where there is one.
fn quality(found: &Summary) -> String {
    match found.deviation {
        Some(deviation) => format!("{} ± {}", format::metric(found.mean), format::metric(deviation)),
        None => format::metric(found.mean),
    }
}

fn quality_curves(out: &mut String, results: &Results) {
    let names = methods(results);
    let classes: Vec<String> = (0..names.len()).map(class).collect();
    out.push_str("<section><h2>Quality against FLOPs and latency</h2>");
    if !points(results).is_empty() {
        out.push_str(
            "<p class=\"hint\">Latency at batch 1 is a question of its own: launches and narrow products count there as \
             much as arithmetic.</p>",
        );
    }
    let entries = names.iter().map(String::as_str).zip(classes.iter().map(String::as_str));
    out.push_str(&legend(entries.chain([(DENSE, "dense")])));
    for task in tasks(results) {
        let dense = results.of(&task, DENSE).next().map(|s| [1.0, s.mean]);
        let curve = |points: &dyn Fn(&str) -> Vec<[f64; 2]>| -> Vec<Curve> {
            let method = |(name, class): (&String, &String)| Curve {
                name: name.clone(),
                class: class.clone(),
                points: sorted(points(name)),
                dots: true,
            };
            names.iter().zip(&classes).map(method).collect()
        };
        let by_flops = |method: &str| results.of(&task, method).map(|s| [s.reached, s.mean]).collect();
        let mut by_flops = curve(&by_flops);
        by_flops.push(Curve {
            name: DENSE.into(),
            class: "dense".into(),
            points: dense.into_iter().collect(),
            dots: true,
        });
        let metric = words(metric(results, &task));
        let _ = write!(out, "<h3>{}</h3><div class=\"pair\">", escape(&task));
        let _ = write!(out, "<div>{}</div>", curves(&by_flops, "FLOPs kept", &metric));
        for (batch, length) in points(results) {
            let by_latency = |method: &str| {
                let rows = results.rows.iter().filter(|r| r.task == task && r.method == method);
                rows.filter_map(|r| Some([share(r, batch, length)?, mean_of(results, r)])).collect()
            };
            let name = format!("latency at batch {batch} × {length} tokens, of the dense model's");
            let _ = write!(out, "<div>{}</div>", curves(&curve(&by_latency), &name, &metric));
        }
        out.push_str("</div>");
    }
    out.push_str("</section>\n");
}

/// Median of a batch as a share of the dense model's.
fn share(row: &Row, batch: usize, length: usize) -> Option<f64> {
    let median = |variant: &str| {
        let same = |l: &&crate::eval::latency::Latency| {
            (l.batch, l.length) == (batch, length) && l.variant == variant
        };
        row.latency.iter().find(same).map(|l| l.median)
    };
    Some(median("model")? / median("against")?)
}

fn mean_of(results: &Results, row: &Row) -> f64 {
    results.of(&row.task, &row.method).find(|s| s.keep == row.keep).map_or(row.value, |s| s.mean)
}

/// The points drawn: batch 1 by itself, where launches and narrow products count, and the largest batch, where what was
/// removed shows; the longest rows of each.
fn points(results: &Results) -> Vec<(usize, usize)> {
    let measured = || results.rows.iter().flat_map(|row| &row.latency).map(|l| (l.batch, l.length));
    let mut points: Vec<_> = measured().filter(|(batch, _)| *batch == 1).max().into_iter().collect();
    points.extend(measured().max().filter(|(batch, _)| *batch != 1));
    points
}

fn times(out: &mut String, results: &Results) {
    let names = methods(results);
    let mean = |task: &str, method: &str| {
        let rows = results.rows.iter().filter(|r| r.task == task && r.method == method);
        // One pruning serves all budgets of a seed.
        let mut seen = Vec::new();
        let mut seconds = Vec::new();
        for row in rows {
            if let (false, Some(value)) = (seen.contains(&row.seed), row.pruning_seconds) {
                seen.push(row.seed);
                seconds.push(value);
            }
        }
        (!seconds.is_empty()).then(|| seconds.iter().sum::<f64>() / seconds.len() as f64)
    };
    out.push_str(
        "<section><h2>Time to prune</h2><p class=\"hint\">Calibration and pruning, mean over seeds; one pass serves all \
         budgets where the method allows it, and Dual-CP together with its controls.</p>",
    );
    for task in tasks(results) {
        let bar = |(index, name): (usize, &String)| {
            let value = mean(&task, name)?;
            Some(Bar { name: name.clone(), value, text: format::seconds(value), class: class(index) })
        };
        let found: Vec<Bar> = names.iter().enumerate().filter_map(bar).collect();
        if !found.is_empty() {
            let _ = write!(out, "<h3>{}</h3>{}", escape(&task), bars(&found, None));
        }
    }
    out.push_str("</section>\n");
}

fn kept(out: &mut String, results: &Results) {
    let with_masks = |r: &&Row| r.masks.is_some();
    let Some(seed) = results.rows.iter().find(with_masks).map(|r| r.seed) else { return };
    let _ = write!(
        out,
        "<section><h2>What was kept</h2><p class=\"hint\">Seed {seed}. A cell is an attention head; a strip is a layer's \
         neurons, the darker the larger the share kept. The last layer is on top.</p>"
    );
    for task in tasks(results) {
        let _ = write!(out, "<h3>{}</h3>", escape(&task));
        for row in results.rows.iter().filter(|r| r.task == task && r.seed == seed) {
            let Some(masks) = &row.masks else { continue };
            let _ = write!(
                out,
                "<details><summary>{}, {} of the FLOPs kept</summary>{}</details>",
                escape(&row.method),
                escape(format::percent(row.reached)),
                kept_units(masks)
            );
        }
    }
    out.push_str("</section>\n");
}

fn overlaps(out: &mut String, results: &Results) {
    let tasks = tasks(results);
    if tasks.len() < 2 {
        return;
    }
    let Some(seed) = results.rows.iter().find(|r| r.masks.is_some()).map(|r| r.seed) else { return };
    let mut body = String::new();
    for method in methods(results) {
        let mut keeps: Vec<f64> =
            results.summary.iter().filter(|s| s.method == method).map(|s| s.keep).collect();
        keeps.sort_by(f64::total_cmp);
        keeps.dedup();
        // The middle budget: near the ends everything or nothing is shared.
        let Some(&keep) = keeps.get(keeps.len() / 2) else { continue };
        let found: Vec<(&str, &UnitMasks)> = results
            .rows
            .iter()
            .filter(|r| r.method == method && r.keep == keep && r.seed == seed)
            .filter_map(|r| Some((r.task.as_str(), r.masks.as_ref()?)))
            .collect();
        let masks: Vec<&UnitMasks> = found.iter().map(|(_, masks)| *masks).collect();
        let Ok((heads, neurons)) = overlap(&masks) else { continue };
        let _ = write!(body, "<h3>{}, {} kept</h3>", escape(&method), escape(format::percent(keep)));
        let columns: Vec<String> =
            std::iter::once(String::new()).chain(found.iter().map(|(task, _)| format!("{task}>"))).collect();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let lines = found.iter().enumerate().map(|(a, (task, _))| {
            let cells = (0..found.len()).map(|b| {
                format!("{} · {}", format::percent(heads.shared[a][b]), format::percent(neurons.shared[a][b]))
            });
            std::iter::once(task.to_string()).chain(cells).collect()
        });
        table(&mut body, &columns, &lines.collect::<Vec<Vec<String>>>());
    }
    if !body.is_empty() {
        let _ = write!(
            out,
            "<section><h2>Shared between tasks</h2><p class=\"hint\">Seed {seed}. Of the heads · neurons kept for the task \
             of the row, how many the task of the column keeps too; two random choices share what they keep.</p>{body}"
        );
        out.push_str("</section>\n");
    }
}

fn sorted(mut points: Vec<[f64; 2]>) -> Vec<[f64; 2]> {
    points.sort_by(|a, b| a[0].total_cmp(&b[0]));
    points
}

fn class(index: usize) -> String {
    format!("m{}", index % COLOURS)
}

fn tasks(results: &Results) -> Vec<String> {
    unique(results.rows.iter().map(|row| row.task.clone()))
}

fn methods_and_dense(results: &Results) -> Vec<String> {
    unique(results.rows.iter().map(|row| row.method.clone()))
}

fn methods(results: &Results) -> Vec<String> {
    methods_and_dense(results).into_iter().filter(|method| method != DENSE).collect()
}

fn unique(values: impl Iterator<Item = String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

fn metric<'a>(results: &'a Results, task: &str) -> &'a str {
    results.rows.iter().find(|row| row.task == task).map_or("", |row| row.metric.as_str())
}

fn short(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or(name)
}
