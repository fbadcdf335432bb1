//! The Python process that runs the peers; `tools/peers/worker.py` documents the protocol.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running worker; ends when its input does.
pub struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(threads: usize) -> Worker {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(".peers/bin/python");
        assert!(python.exists(), "{} is missing: run tools/peers/setup", python.display());
        let mut child = Command::new(python)
            .arg(root.join("tools/peers/worker.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the worker starts");
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

    /// Seconds of each repeat.
    pub fn time(&mut self, workload: &str, repeats: usize) -> Vec<f64> {
        let answer = self.ask(&format!("time {repeats} {workload}"));
        answer.split_whitespace().map(|word| word.parse().expect("seconds")).collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input.take();
        let _ = self.child.wait();
    }
}
