//! A run that is killed, or whose disk is full, at any moment: nothing half written appears under the name that was
//! asked for, and the run that continues ends with the same bits as one that nothing disturbed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::train::{pretrained, secateur, text};

/// Files of an output directory by relative path, without those that hold times.
fn results(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(directory: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            if name == "writer.pid" {
                // Stays where a process is killed between naming the whole directory and removing this.
            } else if path.is_dir() {
                walk(&path, &format!("{name}/"), found);
            } else {
                let timed = name.ends_with("run.json") || name.ends_with("report.html");
                let bytes = std::fs::read(&path).unwrap();
                assert!(!bytes.is_empty(), "{name} is empty");
                found.insert(name, if timed { Vec::new() } else { bytes });
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(directory, "", &mut found);
    found
}

fn same(found: &Path, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    let found = results(found);
    assert!(found.keys().eq(expected.keys()), "{what}: {:?}, not {:?}", found.keys(), expected.keys());
    for (name, bytes) in &found {
        assert!(bytes == &expected[name], "{what}: {name} differs");
    }
}

/// The commands that write directories; each with whether it has `--resume`.
fn commands(model: &Path) -> Vec<(Vec<String>, bool)> {
    let data = ["--model", text(model), "--task", "agreement", "--train-rows", "64", "--eval-rows", "32"];
    let train = ["--epochs", "6", "--learning-rate", "0.001"];
    let prune = ["--keep-flops", "0.6", "--calibration-tokens", "60"];
    let sparse = ["--keep-weights", "0.3"];
    let line = |parts: &[&[&str]]| parts.concat().iter().map(|part| part.to_string()).collect();
    vec![
        (line(&[&["finetune"], &data, &train]), true),
        (line(&[&["run", "--with-dense"], &data, &train, &prune]), true),
        (line(&[&["prune"], &data, &prune]), false),
        (
            line(&[
                &["sparsify", "--method", "smp", "--label-words", "one,two"],
                &data,
                &train[..2],
                &sparse,
            ]),
            true,
        ),
        (line(&[&["sparsify", "--method", "movement"], &data, &train, &sparse]), true),
    ]
}

fn with_out<'a>(command: &'a [String], out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut all: Vec<&str> = command.iter().map(String::as_str).collect();
    all.extend(["--out", text(out), "--threads", "1"]);
    all.extend(more);
    all
}

fn succeed(arguments: &[&str], what: &str) {
    let output = secateur(arguments).output().unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_killed_run_leaves_nothing_half_written_and_continues_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pretrained(folder.path(), "masked-lm", &["--train-tokenizer", "120", "--steps", "5"]);
    for (number, (command, resumes)) in commands(&model).into_iter().enumerate() {
        let folder = folder.path().join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        let whole = folder.join(format!("{}-whole", command[0]));
        let start = Instant::now();
        succeed(&with_out(&command, &whole, &[]), &command[0]);
        let undisturbed = start.elapsed();
        let expected = results(&whole);
        let mut cut_short = 0;
        // The signals take turns, and each meets early, middle and late moments.
        for (moment, signal) in (1..=9).zip(["KILL", "INT", "TERM"].into_iter().cycle()) {
            let what = format!("{} stopped by {signal} at {moment}/10", command[0]);
            let out = folder.join(format!("{}-{moment}", command[0]));
            let arguments = with_out(&command, &out, &[]);
            let mut child = secateur(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(undisturbed * moment / 10);
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
            let status = child.wait().unwrap();
            if status.success() {
                same(&out, &expected, &what);
                continue;
            }
            cut_short += 1;
            // Killed after the last thing it had to do.
            if out.exists() {
                same(&out, &expected, &what);
                continue;
            }
            let partial = folder.join(format!("{}-{moment}.partial", command[0]));
            let checkpoint = |path: &Path| path.join("checkpoints").exists();
            if signal != "KILL" {
                assert!(!partial.exists() || checkpoint(&partial), "{what}: left without a checkpoint");
            }
            succeed(&with_out(&command, &out, if resumes { &["--resume"] } else { &[] }), &what);
            same(&out, &expected, &what);
            assert!(!partial.exists(), "{what}");
        }
        // A machine that is suddenly twice as fast ends some runs early, not most.
        assert!(cut_short >= 4, "{}: only {cut_short} of 9 were stopped in time", command[0]);
    }
}

#[test]
fn two_runs_cannot_write_one_directory_and_a_dead_one_does_not_hold_it() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pretrained(folder.path(), "masked-lm", &["--train-tokenizer", "120", "--steps", "5"]);
    let (command, _) = commands(&model).remove(0);
    let out = folder.path().join("out");
    let partial = folder.path().join("out.partial");
    let long: Vec<&str> = with_out(&command, &out, &[]);
    // So many epochs that it does not end by itself.
    let long: Vec<&str> = long.into_iter().map(|part| if part == "6" { "100000" } else { part }).collect();
    let mut child = secateur(&long).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !partial.join("checkpoints/training_state.safetensors").exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint after two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
    for more in [&[][..], &["--resume"], &["--overwrite"]] {
        let output = secateur(&with_out(&command, &out, more)).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && message.contains("being written by process"), "{message}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(&with_out(&command, &out, &["--overwrite"]), "after the other was killed");
}

/// `secateur` under a limit of the size of any file it writes, in blocks of 512 bytes: what a full disk looks like to
/// it, at a chosen moment.
#[cfg(unix)]
fn on_a_full_disk(blocks: u64, arguments: &[&str]) -> std::process::Output {
    // Ignored, the signal becomes an error of the write.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_secateur")]).args(arguments).args(["--seed", "5"]);
    command.output().unwrap()
}

#[test]
#[cfg(unix)]
fn a_full_disk_is_an_error_that_names_the_file_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pretrained(folder.path(), "masked-lm", &["--train-tokenizer", "120", "--steps", "5"]);
    for (index, (command, resumes)) in commands(&model).into_iter().enumerate() {
        let whole = folder.path().join(format!("{index}-{}-whole", command[0]));
        succeed(&with_out(&command, &whole, &[]), &command[0]);
        let expected = results(&whole);
        let mut failures = 0;
        for blocks in [0, 1, 2, 6, 20, 40, 60, 80, 120, 160, 240, 320] {
            let what = format!("{} with {blocks} blocks", command[0]);
            let out = folder.path().join(format!("{index}-{}-{blocks}", command[0]));
            // Something is there already: it stays until the new is whole.
            std::fs::create_dir(&out).unwrap();
            std::fs::write(out.join("precious"), "kept").unwrap();
            let output = on_a_full_disk(blocks, &with_out(&command, &out, &["--overwrite"]));
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                same(&out, &expected, &what);
                continue;
            }
            failures += 1;
            assert_eq!(output.status.code(), Some(1), "{what}: {message}");
            assert!(message.contains("File too large") && message.contains(".partial"), "{what}: {message}");
            assert_eq!(results(&out).len(), 1, "{what}");
            assert_eq!(std::fs::read_to_string(out.join("precious")).unwrap(), "kept", "{what}");
            let more: &[&str] = if resumes { &["--overwrite", "--resume"] } else { &["--overwrite"] };
            succeed(&with_out(&command, &out, more), &what);
            same(&out, &expected, &what);
        }
        assert!(failures >= 4, "{}: {failures}", command[0]);
    }
}

#[test]
#[cfg(unix)]
fn a_full_disk_fails_single_files_too() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pretrained(folder.path(), "masked-lm", &["--train-tokenizer", "120", "--steps", "5"]);
    let inputs = folder.path().join("rows.json");
    std::fs::write(&inputs, r#"{"input_ids": [[2, 9, 11, 3], [2, 14, 3]]}"#).unwrap();
    let out = folder.path().join("out.safetensors");
    let output = on_a_full_disk(
        2,
        &["forward", "--model", text(&model), "--inputs", text(&inputs), "--out", text(&out)],
    );
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && message.contains("File too large"), "{message}");
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["pretrained", "rows.json", "text"]);
}
