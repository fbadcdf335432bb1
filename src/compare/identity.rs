//! Whether a finished cell is the one asked for.
//!
//! A cell is known by its directory, and the directory only by its name: a task, a seed, a method. What else it was run
//! with (the model, rows, epochs, budgets, choices) its record tells, since every record keeps the command's arguments.
//! They must be those the cell would run with now, or a table would mix what was not meant to be compared. A cell made
//! of another cell must be made of the one that is there.
//!
//! Not compared is what decides where and how fast a cell computes, not what: devices agree to rounding, and a grid may be
//! spread over several; the precision of products is compared. Records of earlier versions have their arguments too, with
//! paths as they were typed; those are the same where the files they were read from lie below them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::grid::{Cell, Grid, NO_MODEL};
use crate::error::{Error, Result};
use crate::report::RunRecord;
use crate::report::record::InputFile;

/// Options that change no result; and masks, of which the content counts, wherever they lie.
const FREE: [&str; 8] =
    ["--device", "--threads", "--out", "--overwrite", "--resume", "--quiet", "--json", "--masks"];

/// Options whose values are paths.
const PATHS: [&str; 3] = ["--model", "--data", "--against"];

/// Fails where a finished cell is not the one asked for, naming the cell, what differs, and what to do.
pub fn check(grid: &Grid, cells: &[Cell]) -> Result<()> {
    for cell in cells.iter().filter(|cell| cell.finished()) {
        let advice = || format!("remove {}, or begin another --out", cell.directory.display());
        let Some(record) = record_of(&cell.directory)? else {
            let message = format!("{} is there, but no run.json says how it was run", cell.name);
            return Err(Error::usage(format!("{message}: {}", advice())));
        };
        if let Some(difference) = difference(&record, &cell.arguments, &grid.out) {
            return Err(Error::usage(format!(
                "{} was run with {difference}: give the same, {}",
                cell.name,
                advice()
            )));
        }
        if let Some(source) = changed_source(cell, cells, &record)? {
            return Err(Error::usage(format!(
                "{} was made of another {} than the one that is there now: {}",
                cell.name,
                source.display(),
                advice()
            )));
        }
    }
    Ok(())
}

/// The record of a cell: of its one model, or of any of its budgets, which one command made.
fn record_of(directory: &Path) -> Result<Option<RunRecord>> {
    let own = directory.join("run.json");
    if own.is_file() {
        return RunRecord::read(&own).map(Some);
    }
    let entries = std::fs::read_dir(directory).map_err(Error::io(directory, "listing"))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path().join("run.json")).collect();
    found.sort();
    found.iter().find(|path| path.is_file()).map(|path| RunRecord::read(path)).transpose()
}

/// The first argument that differs between a record and the command `now`: how it was, and how it is asked for.
/// Paths inside `out` are the same wherever the comparison lay.
pub fn difference(record: &RunRecord, now: &[String], out: &Path) -> Option<String> {
    let ((command, then), (asked, now)) = (options(&record.arguments), options(now));
    if command != asked {
        return Some(format!("the command {command}, and {asked} is asked for"));
    }
    let names: std::collections::BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    for name in names {
        let (before, after) = (then.get(name), now.get(name));
        let same = match (before, after) {
            (Some(before), Some(after)) if PATHS.contains(&name.as_str()) => {
                same_path(&before.concat(), &after.concat(), record, out)
            }
            // A cell that kept its models has all that one without has.
            (None, Some(_)) if name == NO_MODEL => true,
            _ => before == after,
        };
        if !same {
            let shown = |values: Option<&Vec<String>>| match values {
                None => format!("no {name}"),
                Some(values) if values.is_empty() => name.clone(),
                Some(values) => {
                    format!("{name} {}", values.join(if name == "--keep-flops" { "," } else { " " }))
                }
            };
            return Some(format!("{}, and {} is asked for", shown(before), shown(after)));
        }
    }
    None
}

/// The command and the options that count, with their values: those of lists and of repeated options in order, since their
/// order means nothing.
fn options(arguments: &[String]) -> (String, BTreeMap<String, Vec<String>>) {
    let command = arguments.first().cloned().unwrap_or_default();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = None;
    for word in arguments.iter().skip(1) {
        if word.starts_with("--") {
            found.entry(word.clone()).or_default();
            name = Some(word);
        } else if let Some(values) = name.and_then(|name| found.get_mut(name)) {
            match name.is_some_and(|name| name == "--keep-flops") {
                true => values.extend(word.split(',').map(String::from)),
                false => values.push(word.clone()),
            }
        }
    }
    found.retain(|name, _| !FREE.contains(&name.as_str()));
    found.values_mut().for_each(|values| values.sort());
    (command, found)
}

/// Whether two spellings name one place: equal; the same part of the comparison, wherever that lay; or a path that was
/// typed relative and that the record's files lay below.
fn same_path(then: &str, now: &str, record: &RunRecord, out: &Path) -> bool {
    let (before, after) = (Path::new(then), Path::new(now));
    if after.starts_with(out.join("cells"))
        && let Ok(part) = after.strip_prefix(out)
    {
        return before.ends_with(part);
    }
    let read = |input: &InputFile| Path::new(&input.path).starts_with(before);
    then == now || (before.is_relative() && after.ends_with(before) && record.inputs.iter().any(read))
}

/// The file of the cell before that has changed since a cell was made of it.
fn changed_source(cell: &Cell, cells: &[Cell], record: &RunRecord) -> Result<Option<PathBuf>> {
    let Some(before) = cell.after.map(|before| &cells[before]) else { return Ok(None) };
    let (role, file) = match &cell.needs {
        Some(masks) => ("masks", masks.clone()),
        None => ("model", before.directory.join("model.safetensors")),
    };
    // Weights are long to hash: only where the model is not older than what was made of it.
    let younger = || -> Result<bool> {
        Ok(record_of(&before.directory)?.is_some_and(|before| before.started >= record.started))
    };
    if !file.is_file() || (cell.needs.is_none() && !younger()?) {
        return Ok(None);
    }
    Ok(if made_of(record, role, &file)? { None } else { Some(file) })
}

/// Whether a record read, in this role, a file of the very content.
pub fn made_of(record: &RunRecord, role: &str, file: &Path) -> Result<bool> {
    let now = InputFile::hash(role, file)?;
    Ok(record.inputs.iter().any(|input| input.role == role && input.blake3 == now.blake3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(String::from).collect()
    }

    fn recorded(line: &str) -> RunRecord {
        let mut record = RunRecord::begin("run", words(line), 1, 1, "cpu");
        let (role, path, blake3) = ("model".into(), "models/base/model.safetensors".into(), String::new());
        record.inputs.push(InputFile { role, path, bytes: 1, blake3 });
        record
    }

    #[test]
    fn what_changes_no_result_is_free() {
        let then = recorded("run --model /m --keep-flops 0.8,0.6 --seed 1 --threads 2 --device cpu --out a");
        let now = words("run --resume --device cuda --seed 1 --keep-flops 0.6,0.8 --no-model --model /m");
        assert_eq!(difference(&then, &now, Path::new("/o")), None);
        let now = words("run --model /m --keep-flops 0.8,0.6 --seed 1 --precision bf16");
        let found = difference(&then, &now, Path::new("/o")).unwrap();
        assert_eq!(found, "no --precision, and --precision bf16 is asked for");
        let now = words("run --model /m --keep-flops 0.8 --seed 1");
        let found = difference(&then, &now, Path::new("/o")).unwrap();
        assert_eq!(found, "--keep-flops 0.6,0.8, and --keep-flops 0.8 is asked for");
        let now = words("finetune --model /m --keep-flops 0.8 --seed 1");
        assert!(difference(&then, &now, Path::new("/o")).unwrap().contains("command run"));
    }

    #[test]
    fn models_that_were_not_kept_are_missed() {
        let then = recorded("run --model /m --no-model");
        assert!(difference(&then, &words("run --model /m"), Path::new("/o")).is_some());
    }

    #[test]
    fn a_place_may_be_spelled_in_two_ways() {
        let same = |then: &str, now: &str| {
            difference(
                &recorded(&format!("run --model {then}")),
                &words(&format!("run --model {now}")),
                Path::new("/o"),
            )
            .is_none()
        };
        assert!(same("/m/base", "/m/base") && !same("/m/base", "/n/base"));
        // The comparison has moved.
        assert!(
            same("old/o/cells/a/dense", "/o/cells/a/dense")
                && !same("old/o/cells/b/dense", "/o/cells/a/dense")
        );
        // Typed relative, and read from there; a name in a cache was read from elsewhere.
        assert!(same("models/base", "/w/models/base") && !same("base", "/w/models/base"));
    }
}
