//! What the user sees while a run goes on: bars on a terminal, plain lines elsewhere, nothing with `--quiet` or `--json`.
//!
//! All of it goes to standard error; standard output is for results.

use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::format;
use crate::progress::{Listener, Silent};

/// How much to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verbosity {
    /// Progress, notes and warnings.
    Normal,
    /// Warnings only.
    Quiet,
    /// Nothing: the JSON object has it all.
    Json,
}

/// The listener for this process's standard error.
pub fn for_stderr(verbosity: Verbosity) -> Box<dyn Listener> {
    match verbosity {
        Verbosity::Normal if std::io::stderr().is_terminal() => Box::new(Bars::default()),
        Verbosity::Normal => Box::new(Lines::new(std::io::stderr(), Duration::from_secs(10))),
        Verbosity::Quiet => Box::new(WarningsOnly),
        Verbosity::Json => Box::new(Silent),
    }
}

struct WarningsOnly;

impl Listener for WarningsOnly {
    fn begin(&self, _: &str, _: u64, _: &'static str, _: usize) {}
    fn advance(&self, _: u64, _: &str) {}
    fn end(&self, _: &str, _: u64, _: f64) {}
    fn note(&self, _: &str) {}
    fn warn(&self, text: &str) {
        eprintln!("warning: {text}");
    }
}

/// Bars, one a stage, inner stages below outer ones.
#[derive(Default)]
struct Bars {
    screen: MultiProgress,
    open: Mutex<Vec<ProgressBar>>,
}

impl Bars {
    fn open(&self) -> MutexGuard<'_, Vec<ProgressBar>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Bars {
    fn begin(&self, name: &str, total: u64, unit: &'static str, depth: usize) {
        let indent = "  ".repeat(depth);
        let template = if total > 0 {
            format!(
                "{indent}{{prefix}}  {{bar:28.green/dim}} {{pos}}/{{len}} {unit}  {{elapsed}} <{{eta}}  {{msg}}"
            )
        } else {
            format!("{indent}{{prefix}}  {{spinner}} {{elapsed}}  {{msg}}")
        };
        let style = ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━╸─");
        let bar =
            self.screen.add(if total > 0 { ProgressBar::new(total) } else { ProgressBar::new_spinner() });
        bar.set_style(style);
        bar.set_prefix(name.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.open().push(bar);
    }

    fn advance(&self, done: u64, detail: &str) {
        if let Some(bar) = self.open().last() {
            bar.set_position(done);
            if bar.message() != detail {
                bar.set_message(detail.to_string());
            }
        }
    }

    fn end(&self, name: &str, _: u64, seconds: f64) {
        let mut open = self.open();
        let depth = open.len().saturating_sub(1);
        if let Some(bar) = open.pop() {
            let detail = bar.message();
            bar.finish_and_clear();
            self.screen.remove(&bar);
            // What took no time is not worth a line of its own.
            if seconds >= 0.5 {
                let line = ended(name, seconds, &detail, depth);
                let _ = self.screen.println(line);
            }
        }
    }

    fn note(&self, text: &str) {
        let _ = self.screen.println(text);
    }

    fn warn(&self, text: &str) {
        let _ = self.screen.println(format!("warning: {text}"));
    }
}

fn ended(name: &str, seconds: f64, detail: &str, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let gap = if detail.is_empty() { "" } else { "  " };
    format!("{indent}{name}  {}{gap}{detail}", format::seconds(seconds))
}

/// Plain lines, at most one every `interval` for each stage and one at its end.
struct Lines<W> {
    state: Mutex<LinesState<W>>,
    interval: Duration,
}

struct LinesState<W> {
    out: W,
    open: Vec<OpenLine>,
}

struct OpenLine {
    name: String,
    total: u64,
    unit: &'static str,
    detail: String,
    last: Instant,
}

impl<W: std::io::Write + Send> Lines<W> {
    fn new(out: W, interval: Duration) -> Lines<W> {
        Lines { state: Mutex::new(LinesState { out, open: Vec::new() }), interval }
    }

    fn state(&self) -> MutexGuard<'_, LinesState<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn print(&self, line: &str) {
        // Nobody reading standard error is no reason to stop.
        let _ = writeln!(self.state().out, "{line}");
    }
}

impl<W: std::io::Write + Send> Listener for Lines<W> {
    fn begin(&self, name: &str, total: u64, unit: &'static str, _: usize) {
        let (name, detail) = (name.to_string(), String::new());
        self.state().open.push(OpenLine { name, total, unit, detail, last: Instant::now() });
    }

    fn advance(&self, done: u64, detail: &str) {
        let mut state = self.state();
        let depth = state.open.len().saturating_sub(1);
        let Some(open) = state.open.last_mut() else { return };
        if open.detail != detail {
            open.detail = detail.to_string();
        }
        if open.last.elapsed() < self.interval {
            return;
        }
        open.last = Instant::now();
        let of = if open.total > 0 { format!("/{}", open.total) } else { String::new() };
        let gap = if detail.is_empty() { "" } else { "  " };
        let line = format!("{}{}: {done}{of} {}{gap}{detail}", "  ".repeat(depth), open.name, open.unit);
        let _ = writeln!(state.out, "{line}");
    }

    fn end(&self, name: &str, _: u64, seconds: f64) {
        let mut state = self.state();
        let Some(open) = state.open.pop() else { return };
        if seconds >= 0.5 {
            let depth = state.open.len();
            let _ = writeln!(state.out, "{}", ended(name, seconds, &open.detail, depth));
        }
    }

    fn note(&self, text: &str) {
        self.print(text);
    }

    fn warn(&self, text: &str) {
        self.print(&format!("warning: {text}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::progress::{Interrupt, Progress};

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_plain_and_rare() {
        let screen = Screen::default();
        let progress = Progress::new(Lines::new(screen.clone(), Duration::ZERO), Interrupt::new());
        let mut stage = progress.stage("fine-tuning", 2, "steps");
        stage.detail("loss 0.50");
        stage.advance(1);
        drop(stage);
        progress.warn("two rows were left out");
        let text = String::from_utf8(screen.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "fine-tuning: 1/2 steps  loss 0.50\nwarning: two rows were left out\n");

        let screen = Screen::default();
        let progress = Progress::new(Lines::new(screen.clone(), Duration::from_secs(60)), Interrupt::new());
        let mut stage = progress.stage("fine-tuning", 1000, "steps");
        (0..1000).for_each(|_| stage.advance(1));
        drop(stage);
        assert!(screen.0.lock().unwrap().is_empty());
    }
}
