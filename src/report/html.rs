//! `report.html`: the page of a run.
//!
//! Its order is the reader's: what was reached, what was kept, what it cost in quality, how it went, how to repeat it.

use std::fmt::Write as _;

use super::figures::{Bar, Curve, Part, bars, curves, kept_units, legend, stack};
use super::format;
use super::page::{page, table, words};
use super::record::{Evaluation, RunRecord, Training};
use super::svg::escape;
use crate::prune::masks::UnitMasks;

/// The page of a run. `masks` draws the kept units; without it the layers are bars of the record's numbers.
pub fn render(record: &RunRecord, masks: Option<&UnitMasks>) -> String {
    let mut body = String::new();
    head(&mut body, record);
    tiles(&mut body, record);
    warnings(&mut body, record);
    kept(&mut body, record, masks);
    budget(&mut body, record);
    quality(&mut body, record);
    training(&mut body, record);
    times(&mut body, record);
    choices(&mut body, record);
    calibration(&mut body, record);
    repeat(&mut body, record);
    page(title(record), &body)
}

fn title(record: &RunRecord) -> String {
    let model = record.model.as_ref().map_or("model", |m| last_component(&m.name));
    let verb = match record.command.as_str() {
        "prune" => "pruned",
        "finetune" => "fine-tuned",
        "evaluate" => "evaluated",
        "pretrain" => "pre-trained",
        _ if record.budget.is_some() => "pruned and fine-tuned",
        other => other,
    };
    match &record.task {
        Some(task) => format!("{model}, {verb} for {}", task.name),
        None => format!("{model}, {verb}"),
    }
}

/// "minilm" of "/a/b/minilm" and of "owner/minilm".
fn last_component(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or(name)
}

fn head(out: &mut String, record: &RunRecord) {
    let _ = write!(out, "<header><h1>{}</h1>", escape(title(record)));
    let date = record.started.replace('T', " ").replace('Z', " UTC");
    let method =
        record.method.as_ref().map_or(String::new(), |m| format!("{}, {} profile · ", m.name, m.profile));
    let _ = writeln!(
        out,
        "<p class=\"lead\">{}seed {} · {} · secateur {} · {}</p></header>",
        escape(method),
        record.seed,
        escape(&record.device),
        escape(&record.secateur),
        escape(date)
    );
}

fn tiles(out: &mut String, record: &RunRecord) {
    let mut tiles: Vec<[String; 3]> = Vec::new();
    if let Some(keep) = record.keep_flops {
        let note = format!("{} asked", format::percent(keep.asked));
        tiles.push(["FLOPs kept".into(), format::percent(keep.reached), note]);
    }
    if let Some(size) = record.size {
        let share = size.parameters_kept as f64 / size.parameters_dense.max(1) as f64;
        let note =
            format!("of {}, {} kept", format::count(size.parameters_dense as f64), format::percent(share));
        tiles.push(["Parameters".into(), format::count(size.parameters_kept as f64), note]);
    }
    if let (Some(pruned), Some(task)) = (main_evaluation(record), &record.task)
        && let Some(value) = pruned.metrics.get(&task.metric)
    {
        let note = record.evaluation("dense").and_then(|dense| dense.metrics.get(&task.metric)).map_or_else(
            || format!("{} split", pruned.split),
            |dense| format!("{} dense", format::metric(*dense)),
        );
        tiles.push([words(&task.metric), format::metric(*value), note]);
    }
    if let (Some(pruned), Some(dense)) = (main_evaluation(record), record.evaluation("dense"))
        && pruned.variant != "dense"
        && let (Some(fast), Some(slow)) = (per_row(pruned), per_row(dense))
    {
        let note = format!("{} a row, {} dense", format::seconds(fast), format::seconds(slow));
        tiles.push(["Speed-up, measured".into(), format!("{:.2} ×", slow / fast), note]);
    }
    if let Some(peak) = record.peak_bytes {
        let note =
            record.planned_peak_bytes.map_or(String::new(), |p| format!("{} planned", format::bytes(p)));
        tiles.push(["Peak memory".into(), format::bytes(peak), note]);
    }
    if record.elapsed_seconds > 0.0 {
        tiles.push([
            "Time in all".into(),
            format::seconds(record.elapsed_seconds),
            format!("{} threads", record.threads),
        ]);
    }
    out.push_str("<div class=\"tiles\">");
    for [what, figure, note] in tiles {
        let _ = write!(
            out,
            "<div class=\"tile\"><div class=\"what\">{}</div><div class=\"figure\">{}</div><div class=\"note\">{}</div></div>",
            escape(what),
            escape(figure),
            escape(note)
        );
    }
    out.push_str("</div>\n");
}

/// The evaluation the page is about: the first that is neither dense nor a control, else the first.
fn main_evaluation(record: &RunRecord) -> Option<&Evaluation> {
    let pruned = |e: &&Evaluation| class_of(&e.variant) == "kept";
    record.evaluations.iter().find(pruned).or(record.evaluations.first())
}

fn per_row(evaluation: &Evaluation) -> Option<f64> {
    let seconds = evaluation.seconds / evaluation.rows as f64;
    (seconds.is_finite() && seconds > 0.0).then_some(seconds)
}

fn class_of(variant: &str) -> &'static str {
    match variant {
        "dense" => "dense",
        v if v.starts_with("worst") => "worst",
        v if v.starts_with("random") => "other",
        _ => "kept",
    }
}

fn warnings(out: &mut String, record: &RunRecord) {
    if record.warnings.is_empty() && record.bad_rows.is_empty() {
        return;
    }
    out.push_str("<section class=\"warnings\"><h2>Mind</h2><ul>");
    for warning in &record.warnings {
        let _ = write!(out, "<li>{}</li>", escape(warning));
    }
    for bad in &record.bad_rows {
        let _ = write!(out, "<li><details><summary>{}: {} unusable</summary>", escape(&bad.path), bad.count);
        for (number, reason) in bad.rows.iter().take(50) {
            let _ = write!(out, "{} {number}: {}<br/>", escape(&bad.unit), escape(reason));
        }
        if bad.count > 50 {
            let _ = write!(out, "and {} more, in run.json", bad.count - 50);
        }
        out.push_str("</details>");
        out.push_str("</li>");
    }
    out.push_str("</ul></section>\n");
}

fn kept(out: &mut String, record: &RunRecord, masks: Option<&UnitMasks>) {
    if record.heads_kept.is_empty() {
        return;
    }
    out.push_str("<section><h2>What was kept</h2>");
    match masks {
        Some(masks) => {
            out.push_str(
                "<p class=\"hint\">A cell is an attention head. A strip is a layer's neurons in their order; the \
                 darker, the larger the share kept there. The last layer is on top.</p>",
            );
            out.push_str(&kept_units(masks));
        }
        None => {
            let layer = |kept: &[usize], all: &[usize]| -> Vec<Bar> {
                let pairs = kept.iter().zip(all).enumerate().rev();
                pairs
                    .map(|(layer, (kept, all))| Bar {
                        name: format!("layer {}", layer + 1),
                        value: *kept as f64 / (*all).max(1) as f64,
                        text: format!("{kept} of {all}"),
                        class: "kept".into(),
                    })
                    .collect()
            };
            out.push_str("<div class=\"pair\"><div><h3>Heads</h3>");
            out.push_str(&bars(&layer(&record.heads_kept, &record.heads), Some(1.0)));
            out.push_str("</div><div><h3>Neurons</h3>");
            out.push_str(&bars(&layer(&record.neurons_kept, &record.neurons), Some(1.0)));
            out.push_str("</div></div>");
        }
    }
    out.push_str("</section>\n");
}

fn budget(out: &mut String, record: &RunRecord) {
    let Some(budget) = &record.budget else { return };
    out.push_str("<section><h2>Budget</h2>");
    let length = record
        .calibration
        .as_ref()
        .map_or(String::new(), |c| format!(" at {:.2} tokens a row", c.cost_length));
    let _ = write!(
        out,
        "<p class=\"hint\">Multiply–accumulates of the blocks{}. The whole bar is the dense model: {}.</p>",
        escape(length),
        escape(format::count(budget.macs_total))
    );
    let part = |macs: f64, class: &str, name: &str| Part {
        share: macs / budget.macs_total,
        class: class.into(),
        title: format!("{name}: {}", format::percent(macs / budget.macs_total)),
    };
    out.push_str(&stack(&[
        part(budget.attention.macs_kept, "kept", "attention kept"),
        part(budget.ffn.macs_kept, "ffn", "FFN kept"),
    ]));
    out.push_str(&legend([("attention kept", "kept"), ("FFN kept", "ffn"), ("removed", "gone")]));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (name, unit, part) in
        [("attention", "heads", budget.attention.clone()), ("FFN", "neurons", budget.ffn.clone())]
    {
        rows.push(vec![
            name.into(),
            format!(
                "{} of {} {unit}",
                format::grouped(part.units_kept as u64),
                format::grouped(part.units_total as u64)
            ),
            format::count(part.macs_kept),
            format::count(part.macs_total),
            format::percent(part.macs_kept / part.macs_total.max(f64::MIN_POSITIVE)),
        ]);
    }
    rows.push(vec![
        "blocks".into(),
        String::new(),
        format::count(budget.macs_kept),
        format::count(budget.macs_total),
        format::percent(budget.reached),
    ]);
    table(out, &["part", "units kept", "MACs kept>", "MACs dense>", "kept>"], &rows);
    if let Some(size) = record.size {
        let line = |name: &str, kept: u64, dense: u64, show: fn(u64) -> String| {
            let share = kept as f64 / dense.max(1) as f64;
            vec![name.to_string(), show(kept), show(dense), format::percent(share)]
        };
        let rows = [
            line("parameters", size.parameters_kept, size.parameters_dense, format::grouped),
            line("checkpoint", size.bytes_kept, size.bytes_dense, format::bytes),
        ];
        out.push_str("<h3>Whole model, embeddings and head included</h3>");
        table(out, &["", "kept>", "dense>", "share>"], &rows);
    }
    if let Some(proof) = record.compact {
        let _ = write!(
            out,
            "<p class=\"hint\">The compact model against the masked one, on {} rows: largest difference of a logit \
             {:.2e} (largest logit {:.2}).</p>",
            proof.rows, proof.max_logit_difference, proof.max_logit
        );
    }
    out.push_str("</section>\n");
}

fn quality(out: &mut String, record: &RunRecord) {
    if record.evaluations.is_empty() {
        return;
    }
    out.push_str("<section><h2>Quality and time</h2>");
    if let Some(task) = &record.task {
        let better = if task.larger_is_better { "larger" } else { "smaller" };
        let split = &record.evaluations[0].split;
        let _ = write!(
            out,
            "<p class=\"hint\">{} on the {} split of {}; {better} is better.</p>",
            escape(words(&task.metric)),
            escape(split),
            escape(&task.name)
        );
        let quality = record.evaluations.iter().filter_map(|e| Some((e, *e.metrics.get(&task.metric)?)));
        let quality: Vec<Bar> = quality
            .map(|(e, value)| Bar {
                name: e.variant.clone(),
                value,
                text: format::metric(value),
                class: class_of(&e.variant).into(),
            })
            .collect();
        // Shares and correlations are read against 1, percentages against 100.
        let full = match task.metric.as_str() {
            "exact_match" | "answer_f1" => Some(100.0),
            "perplexity" | "loss" => None,
            _ => Some(1.0),
        };
        let time: Vec<Bar> = record
            .evaluations
            .iter()
            .filter_map(|e| {
                let value = per_row(e)?;
                let class = class_of(&e.variant).into();
                Some(Bar { name: e.variant.clone(), value, text: format::seconds(value), class })
            })
            .collect();
        let _ = write!(
            out,
            "<div class=\"pair\"><div><h3>{}</h3>{}</div>",
            escape(words(&task.metric)),
            bars(&quality, full)
        );
        let _ = write!(out, "<div><h3>Time a row</h3>{}</div></div>", bars(&time, None));
    }
    let mut names: Vec<&str> = Vec::new();
    for name in record.evaluations.iter().flat_map(|e| e.metrics.iter().map(|(name, _)| name)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let heads: Vec<String> = ["model".to_string(), "FLOPs kept>".into()]
        .into_iter()
        .chain(names.iter().map(|name| format!("{}>", words(name))))
        .chain(["rows>".into(), "seconds>".into()])
        .collect();
    let rows: Vec<Vec<String>> = record
        .evaluations
        .iter()
        .map(|e| {
            let metrics =
                names.iter().map(|n| e.metrics.get(n).map_or(String::new(), |v| format::metric(*v)));
            [e.variant.clone(), format::percent(e.keep_flops)]
                .into_iter()
                .chain(metrics)
                .chain([format::grouped(e.rows as u64), format!("{:.2}", e.seconds)])
                .collect()
        })
        .collect();
    table(out, &heads.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    out.push_str("</section>\n");
}

fn training(out: &mut String, record: &RunRecord) {
    if record.training.is_empty() {
        return;
    }
    out.push_str("<section><h2>Training</h2>");
    let mut objectives: Vec<&str> = Vec::new();
    for run in &record.training {
        if !objectives.contains(&run.objective.as_str()) {
            objectives.push(&run.objective);
        }
    }
    for objective in objectives {
        let runs: Vec<&Training> = record.training.iter().filter(|run| run.objective == objective).collect();
        let _ = write!(out, "<h3>{}</h3>", escape(objective));
        out.push_str(&legend(runs.iter().map(|run| (run.variant.as_str(), class_of(&run.variant)))));
        let loss: Vec<Curve> = runs
            .iter()
            .map(|run| Curve {
                name: run.variant.clone(),
                class: class_of(&run.variant).into(),
                points: run.losses.iter().map(|p| [p.step as f64, p.loss]).collect(),
                dots: false,
            })
            .collect();
        let metric =
            runs.iter().flat_map(|r| &r.epochs).find_map(|e| e.metrics.iter().next().map(|(n, _)| n));
        let _ = write!(out, "<div class=\"pair\"><div>{}", curves(&loss, "step", "Training loss"));
        out.push_str("</div>");
        if let Some(metric) = metric {
            let curve = |run: &&Training| Curve {
                name: run.variant.clone(),
                class: class_of(&run.variant).into(),
                points: run
                    .epochs
                    .iter()
                    .filter_map(|e| Some([e.epoch as f64, *e.metrics.get(metric)?]))
                    .collect(),
                dots: true,
            };
            let figure = curves(&runs.iter().map(curve).collect::<Vec<_>>(), "epoch", &words(metric));
            let _ = write!(out, "<div>{figure}</div>");
        }
        out.push_str("</div>");
        let rows: Vec<Vec<String>> = runs
            .iter()
            .map(|run| {
                let recipe: Vec<String> =
                    run.recipe.iter().map(|(name, value)| format!("{name} {value}")).collect();
                let best = run.best_epoch.map_or(String::new(), |epoch| epoch.to_string());
                vec![
                    run.variant.clone(),
                    format::grouped(run.steps),
                    format::seconds(run.seconds),
                    best,
                    recipe.join(", "),
                ]
            })
            .collect();
        table(out, &["model", "steps>", "time>", "best epoch>", "recipe"], &rows);
    }
    out.push_str("</section>\n");
}

fn times(out: &mut String, record: &RunRecord) {
    if record.seconds.is_empty() {
        return;
    }
    let bar = |(name, seconds): (&str, &f64)| Bar {
        name: name.to_string(),
        value: *seconds,
        text: format::seconds(*seconds),
        class: if name.contains(" / ") { "dense" } else { "kept" }.into(),
    };
    let list: Vec<Bar> = record.seconds.iter().map(bar).collect();
    let _ = writeln!(
        out,
        "<section><h2>Where the time went</h2><p class=\"hint\">Stages inside another stage are part of its time.</p>{}</section>",
        bars(&list, None)
    );
}

fn choices(out: &mut String, record: &RunRecord) {
    let Some(method) = &record.method else { return };
    let _ = write!(
        out,
        "<section><h2>Choices</h2><p class=\"hint\">{}, {} profile. What was given on the command line is marked.</p>\
         <div class=\"scroll\"><table><tbody>",
        escape(&method.name),
        escape(&method.profile)
    );
    for (name, choice) in method.choices.iter() {
        let mark = if choice.given { " <span class=\"given\">given</span>" } else { "" };
        let _ = write!(out, "<tr><th>{}</th><td>{}{mark}</td></tr>", escape(name), escape(&choice.value));
    }
    out.push_str("</tbody></table></div></section>\n");
}

fn calibration(out: &mut String, record: &RunRecord) {
    let Some(calibration) = &record.calibration else { return };
    let _ = write!(
        out,
        "<section><h2>Calibration</h2><p>{} rows of {} in {}; {} tokens drawn from {}. Costs are counted at {:.2} tokens \
         a row.</p>",
        format::grouped(calibration.rows.len() as u64),
        format::grouped(calibration.rows_available as u64),
        escape(&calibration.source),
        format::grouped(calibration.tokens.len() as u64),
        format::grouped(calibration.tokens_available as u64),
        calibration.cost_length
    );
    let dead: usize = calibration.dead_neurons.iter().sum();
    if dead > 0 {
        let _ = write!(
            out,
            "<p>{} neurons were zero on every calibration token.</p>",
            format::grouped(dead as u64)
        );
    }
    out.push_str("<p class=\"hint\">The indices of rows and tokens are in run.json.</p></section>\n");
}

fn repeat(out: &mut String, record: &RunRecord) {
    out.push_str("<section><h2>To repeat it</h2>");
    let arguments: Vec<String> = record.arguments.iter().map(|a| format::shell_word(a)).collect();
    let _ = write!(out, "<pre>secateur {}</pre>", escape(arguments.join(" ")));
    let machine = &record.machine;
    let _ = write!(
        out,
        "<p class=\"hint\">{} {}, {}, {} logical processors, {}; {} threads.</p>",
        escape(&machine.os),
        escape(&machine.architecture),
        escape(if machine.processor.is_empty() { "processor not named" } else { &machine.processor }),
        machine.logical_processors,
        escape(machine.vector_extensions.join(", ")),
        record.threads
    );
    if !record.inputs.is_empty() {
        let rows: Vec<Vec<String>> = record
            .inputs
            .iter()
            .map(|f| vec![f.role.clone(), f.path.clone(), format::bytes(f.bytes), f.blake3.clone()])
            .collect();
        out.push_str("<details><summary>Files read, with their BLAKE3 hashes</summary>");
        table(out, &["as", "path", "size>", "hash"], &rows);
        out.push_str("</details>");
    }
    out.push_str("</section>\n");
}
