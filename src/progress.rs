//! What a long loop is given: where to say how far it is, and how to learn that it should stop.
//!
//! Library code never prints and never installs signal handlers. It opens a [`Stage`] for each thing that takes long,
//! advances it, and asks [`Progress::check`] between two units of work. Who listens is decided by the caller: the
//! command line shows bars, lines or nothing (`report::progress`), a test listens to nobody. Seconds of every
//! stage and all warnings are kept here, so that a run record and the terminal cannot disagree.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::memory::MemoryPlan;

/// Someone has asked the process to stop. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// A flag that is not set.
    pub fn new() -> Interrupt {
        Interrupt::default()
    }
    /// Asks for a stop; returns whether that had been asked before. Safe in a signal-handling thread.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }
    /// Whether a stop has been asked for.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where the news of a run goes. Calls come from one thread at a time but not always from the same one.
pub trait Listener: Send + Sync {
    /// A stage begins. `total` is 0 where the amount of work is not known; `depth` counts the stages around it.
    fn begin(&self, name: &str, total: u64, unit: &'static str, depth: usize);
    /// The innermost stage has done `done` units; `detail` is its latest [`Stage::detail`].
    fn advance(&self, done: u64, detail: &str);
    /// The innermost stage ended after so many seconds.
    fn end(&self, name: &str, done: u64, seconds: f64);
    /// A line for the user that is neither progress nor a warning.
    fn note(&self, text: &str);
    /// Something the user should know that does not stop the run.
    fn warn(&self, text: &str);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Listener for Silent {
    fn begin(&self, _: &str, _: u64, _: &'static str, _: usize) {}
    fn advance(&self, _: u64, _: &str) {}
    fn end(&self, _: &str, _: u64, _: f64) {}
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

/// Seconds of one stage, all its runs together.
#[derive(Clone, Debug, PartialEq)]
pub struct StageSeconds {
    /// Names from the outermost stage inwards, joined by " / ".
    pub stage: String,
    /// Wall-clock seconds, those of inner stages included.
    pub seconds: f64,
}

#[derive(Default)]
struct Kept {
    open: Vec<String>,
    seconds: Vec<StageSeconds>,
    warnings: Vec<String>,
    planned_bytes: Option<u64>,
}

struct Shared {
    listener: Box<dyn Listener>,
    interrupt: Interrupt,
    kept: Mutex<Kept>,
}

/// Handle on the progress of one run. Clones share it.
#[derive(Clone)]
pub struct Progress(Arc<Shared>);

impl Progress {
    /// Progress that tells `listener` and stops at `interrupt`.
    pub fn new(listener: impl Listener + 'static, interrupt: Interrupt) -> Progress {
        Progress::with(Box::new(listener), interrupt)
    }

    /// The same for a listener chosen at run time.
    pub fn with(listener: Box<dyn Listener>, interrupt: Interrupt) -> Progress {
        let kept = Mutex::default();
        Progress(Arc::new(Shared { listener, interrupt, kept }))
    }

    /// Progress nobody hears and nothing interrupts.
    pub fn silent() -> Progress {
        Progress::new(Silent, Interrupt::new())
    }

    /// Opens a stage of `total` units (0 if not known); it ends when the [`Stage`] is dropped. Stages nest.
    pub fn stage(&self, name: &str, total: u64, unit: &'static str) -> Stage {
        let depth = {
            let mut kept = self.kept();
            kept.open.push(name.to_string());
            kept.open.len() - 1
        };
        self.0.listener.begin(name, total, unit, depth);
        Stage { progress: self.clone(), depth, done: 0, detail: String::new(), start: Instant::now() }
    }

    /// Fails with [`Error::Interrupted`] if a stop was asked for; `saved` says what remains of the work.
    pub fn check(&self, saved: impl FnOnce() -> String) -> Result<()> {
        if self.0.interrupt.is_requested() {
            return Err(Error::Interrupted(saved()));
        }
        Ok(())
    }

    /// Whether a stop was asked for, where the caller wants to save its work first.
    pub fn interrupted(&self) -> bool {
        self.0.interrupt.is_requested()
    }

    /// Tells the user a line.
    pub fn note(&self, text: impl AsRef<str>) {
        self.0.listener.note(text.as_ref());
    }

    /// Tells and records something the user should know.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        self.0.listener.warn(&text);
        self.kept().warnings.push(text);
    }

    /// Records how much memory the next piece of work will take, and tells it if that is more than was told before. What
    /// was reached before the first plan, while the inputs were read, counts as planned.
    pub fn plan_memory(&self, plan: &MemoryPlan) {
        if self.planned_bytes().is_none_or(|told| plan.peak() > told) {
            self.note(plan.to_string());
        }
        let mut kept = self.kept();
        let before = kept.planned_bytes.unwrap_or(plan.reached());
        kept.planned_bytes = Some(before.max(plan.peak()));
    }

    /// The largest peak planned so far, in bytes.
    pub fn planned_bytes(&self) -> Option<u64> {
        self.kept().planned_bytes
    }

    /// Adds seconds measured elsewhere to the stage of this path.
    pub fn record_seconds(&self, stage: &str, seconds: f64) {
        let mut kept = self.kept();
        match kept.seconds.iter_mut().find(|known| known.stage == stage) {
            Some(known) => known.seconds += seconds,
            None => kept.seconds.push(StageSeconds { stage: stage.to_string(), seconds }),
        }
    }

    /// Seconds of the stages that have ended, in the order in which they first began to end.
    pub fn seconds(&self) -> Vec<StageSeconds> {
        self.kept().seconds.clone()
    }

    /// Warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.kept().warnings.clone()
    }

    /// A panic elsewhere must not hide behind a poisoned lock: the data are valid after every statement.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("open", &self.kept().open).finish_non_exhaustive()
    }
}

/// One thing that takes long. Ends when dropped.
#[derive(Debug)]
pub struct Stage {
    progress: Progress,
    depth: usize,
    done: u64,
    detail: String,
    start: Instant,
}

impl Stage {
    /// `by` more units are done.
    pub fn advance(&mut self, by: u64) {
        self.done += by;
        self.progress.0.listener.advance(self.done, &self.detail);
    }

    /// What to show beside the count from the next [`Stage::advance`] on: "loss 0.412".
    pub fn detail(&mut self, detail: impl Into<String>) {
        self.detail = detail.into();
    }

    /// Seconds since the stage began.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Ends the stage; returns its seconds.
    pub fn finish(self) -> f64 {
        self.seconds()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let seconds = self.seconds();
        let mut kept = self.progress.kept();
        // Stages dropped out of order (an early return) close everything they contain.
        let path = kept.open.get(..=self.depth).map(|open| open.join(" / "));
        kept.open.truncate(self.depth);
        let Some(path) = path else { return };
        drop(kept);
        self.progress.record_seconds(&path, seconds);
        let name = path.rsplit(" / ").next().unwrap_or(&path);
        self.progress.0.listener.end(name, self.done, seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_nest_and_repeated_stages_add_up() {
        let progress = Progress::silent();
        for _ in 0..2 {
            let mut outer = progress.stage("training", 2, "steps");
            progress.stage("evaluation", 0, "rows").finish();
            outer.advance(1);
        }
        let names: Vec<String> = progress.seconds().into_iter().map(|s| s.stage).collect();
        assert_eq!(names, ["training / evaluation", "training"]);
        let seconds = progress.seconds();
        assert!(seconds[1].seconds >= seconds[0].seconds);
    }

    #[test]
    fn an_interrupt_becomes_an_error_that_says_what_is_saved() {
        let interrupt = Interrupt::new();
        let progress = Progress::new(Silent, interrupt.clone());
        assert!(progress.check(|| "nothing".into()).is_ok());
        assert!(!interrupt.request() && interrupt.request());
        let error = progress.check(|| "the checkpoint of step 7 is kept".into()).unwrap_err();
        assert!(error.to_string().contains("step 7"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn warnings_are_kept_for_the_record() {
        let progress = Progress::silent();
        progress.warn("fewer tokens than asked");
        assert_eq!(progress.warnings(), ["fewer tokens than asked"]);
    }
}
