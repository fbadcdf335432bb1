//! The Python process that runs the peers; `tools/peers/worker.py` documents the protocol.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Part of this program, so that a built bench needs no checkout beside it.
const SOURCE: &str = include_str!("../../tools/peers/worker.py");
/// Names the Python to use; without it the one that `tools/peers/setup` made.
const PYTHON: &str = "SECATEUR_PEERS_PYTHON";

/// A running worker; ends when its input does.
pub struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(threads: usize) -> Worker {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/bin/python");
        let python = std::env::var_os(PYTHON).unwrap_or(own.into_os_string());
        let mut child = Command::new(&python)
            .args(["-c", SOURCE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{}: {error}; run tools/peers/setup or set {PYTHON}", python.display())
            });
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("piped")));
        let mut worker = Worker { child, input, output };
        assert_eq!(worker.ask(&format!("threads {threads}")), "ok");
        worker
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input.as_mut().expect("open until dropped"), "{line}").expect("the worker reads");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("the worker answers");
        assert!(!answer.is_empty(), "the worker died on {line:?}; its message is above");
        answer.trim().to_string()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn versions(&mut self) -> String {
        self.ask("versions")
    }

    /// Seconds of each repeat, after `untimed` calls that do not count.
    pub fn time(&mut self, workload: &str, repeats: usize, untimed: usize) -> Vec<f64> {
        let answer = self.ask(&format!("time {repeats} {untimed} {workload}"));
        answer.split_whitespace().map(|word| word.parse().expect("seconds")).collect()
    }

    /// Frees what the workloads so far have set up.
    pub fn forget(&mut self) {
        assert_eq!(self.ask("forget"), "ok");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input.take();
        let _ = self.child.wait();
    }
}
