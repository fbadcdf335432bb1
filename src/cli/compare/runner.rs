//! Running the cells of a comparison, several at a time.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use secateur::compare::grid::{self, Cell, Grid};
use secateur::{Error, Result};

use super::super::context::Context;
use super::processes;

/// Runs cells as processes.
pub struct Runner<'a> {
    pub context: &'a Context,
    pub program: &'a Path,
    pub jobs: usize,
    pub grid: &'a Grid,
    pub cells: &'a [Cell],
}

/// A cell that runs.
struct Running {
    index: usize,
    child: Child,
    started: Instant,
}

impl Runner<'_> {
    /// Runs what has not run; the cells that failed. What waits for a failed cell does not run.
    pub fn run(&self) -> Result<Vec<&Cell>> {
        let (mut running, mut failed) = (Vec::new(), Vec::new());
        let outcome = self.run_all(&mut running, &mut failed);
        // Whatever ended the loop early, nobody would wait for these: they save their checkpoints and end.
        running.iter_mut().for_each(|one: &mut Running| processes::interrupt(&mut one.child));
        for mut one in running {
            let _ = one.child.wait();
        }
        outcome?;
        Ok(failed.into_iter().map(|index: usize| &self.cells[index]).collect())
    }

    fn run_all(&self, running: &mut Vec<Running>, failed: &mut Vec<usize>) -> Result<()> {
        let (cells, progress) = (self.cells, &self.context.progress);
        let mut waiting: Vec<usize> = (0..cells.len()).filter(|&i| !cells[i].finished()).collect();
        let mut stage = progress.stage("cells", waiting.len() as u64, "cells");
        loop {
            progress.check(|| "the same command continues".into())?;
            let mut index = 0;
            while let Some(one) = running.get_mut(index) {
                let Some(status) = one.child.try_wait().map_err(Error::io(self.program, "waiting for"))?
                else {
                    index += 1;
                    continue;
                };
                let one = running.remove(index);
                let (cell, seconds) = (&cells[one.index], one.started.elapsed().as_secs_f64());
                if status.success() {
                    progress.note(format!("{} in {seconds:.0} s", cell.name));
                } else {
                    let log = self.log(cell);
                    progress.warn(format!("{} failed after {seconds:.0} s: {}", cell.name, log.display()));
                    failed.push(one.index);
                }
                stage.advance(1);
            }
            // A budget out of reach left no masks; and nothing can follow a failure.
            let before = waiting.len();
            waiting.retain(|&index| {
                let cell = &cells[index];
                let after_failure = cell.after.is_some_and(|before| failed.contains(&before));
                !after_failure && !cell.out_of_reach(cells)
            });
            stage.advance((before - waiting.len()) as u64);
            while running.len() < self.jobs {
                let ready = |&index: &usize| cells[index].after.is_none_or(|before| cells[before].finished());
                let Some(at) = waiting.iter().position(ready) else { break };
                running.push(self.start(waiting.remove(at))?);
            }
            if running.is_empty() {
                return Ok(());
            }
            std::thread::sleep(processes::POLL);
        }
    }

    fn start(&self, index: usize) -> Result<Running> {
        let cell = &self.cells[index];
        let path = self.log(cell);
        let folders = [path.parent(), cell.directory.parent()];
        for folder in folders.into_iter().flatten() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "creating"))?;
        }
        let mut arguments = cell.arguments.clone();
        let threads = (self.context.threads() / self.jobs).max(1);
        arguments.extend(["--threads".into(), threads.to_string()]);
        let mut log =
            File::options().create(true).append(true).open(&path).map_err(Error::io(&path, "opening"))?;
        writeln!(log, "$ {}", grid::shell_line(self.program, &arguments))
            .map_err(Error::io(&path, "writing"))?;
        let errors = log.try_clone().map_err(Error::io(&path, "opening"))?;
        let mut command = Command::new(self.program);
        command.args(&arguments).stdout(log).stderr(errors);
        let child = processes::start(&mut command).map_err(Error::io(self.program, "starting"))?;
        Ok(Running { index, child, started: Instant::now() })
    }

    /// The output of a cell.
    fn log(&self, cell: &Cell) -> PathBuf {
        self.grid.out.join("logs").join(format!("{}.log", cell.name.replace('/', "_")))
    }

    /// The error of cells that failed: each with the last line it printed and where the others are.
    pub fn failure(&self, failed: &[&Cell]) -> Error {
        let mut message = format!("{} of {} cells failed", failed.len(), self.cells.len());
        for cell in failed {
            let log = self.log(cell);
            let text = std::fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let text = text.unwrap_or_default();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            message.push_str(&format!("\n  {}: {last}\n    its output: {}", cell.name, log.display()));
        }
        Error::format(&self.grid.out, message)
    }
}
