//! The cells of a comparison and the order they need.
//!
//! Names are paths below `cells` in the output directory: `mrpc/seed-1/dense` is the fine-tuned model,
//! `mrpc/seed-1/kcm` a method that prunes it, for all budgets at once; `mrpc/seed-1/dual-cp/masks` the masks of a method
//! that prunes before fine-tuning, and `mrpc/seed-1/dual-cp/keep-0.6` a model fine-tuned under them.
//!
//! Seeds may mean two things. With a dense model for each, deviations are of the whole procedure; with one for all
//! ([`Grid::dense_seed`]) they are of the calibration rows alone, as in the papers of methods that need no retraining,
//! which prune one published checkpoint.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::prune::Stage;
use crate::report::RunRecord;
use crate::report::format::shell_word;

/// Name of the cell that fine-tunes the model unpruned.
pub const DENSE: &str = "dense";

/// A task and where its data are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEntry {
    /// Name of the task.
    pub name: String,
    /// Its data; none for the built-in task.
    pub data: Option<PathBuf>,
}

/// A method and when it prunes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodEntry {
    /// Name of the method.
    pub name: String,
    /// Before or after fine-tuning.
    pub stage: Stage,
}

/// What is compared.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The pre-trained model.
    pub model: String,
    /// Tasks.
    pub tasks: Vec<TaskEntry>,
    /// Methods.
    pub methods: Vec<MethodEntry>,
    /// Budgets: fractions of FLOPs to keep.
    pub keep: Vec<f64>,
    /// Seeds of calibration, fine-tuning and controls.
    pub seeds: Vec<u64>,
    /// Seed of the one dense model of a task that all seeds prune; absent where each seed has its own.
    pub dense_seed: Option<u64>,
    /// Output directory of the comparison.
    pub out: PathBuf,
    /// Arguments of every command: device, precision, threads.
    pub common: Vec<String>,
    /// Arguments of every command that reads the task: lengths, rows.
    pub task_arguments: Vec<String>,
    /// Arguments of every command that trains.
    pub train_arguments: Vec<String>,
    /// Arguments of every command that prunes.
    pub prune_arguments: Vec<String>,
    /// Whether the pruned models themselves are kept, not only their masks and records.
    pub keep_models: bool,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its path below `cells`.
    pub name: String,
    /// Its output directory. A directory appears only when everything in it is whole, so a cell whose directory is there
    /// is finished.
    pub directory: PathBuf,
    /// The command's arguments.
    pub arguments: Vec<String>,
    /// Index of the cell that must be finished before.
    pub after: Option<usize>,
    /// A file that the cell before may have left out, because the budget is out of the method's reach: then there is
    /// nothing to do.
    pub needs: Option<PathBuf>,
}

impl Cell {
    /// Whether it has run.
    pub fn finished(&self) -> bool {
        self.directory.is_dir()
    }
}

impl Grid {
    /// Fails on an empty or repeated axis.
    pub fn check(&self) -> Result<()> {
        let tasks: Vec<&str> = self.tasks.iter().map(|task| task.name.as_str()).collect();
        let methods: Vec<&str> = self.methods.iter().map(|method| method.name.as_str()).collect();
        let keep: Vec<String> = self.keep.iter().map(f64::to_string).collect();
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let axes = [
            ("task", tasks),
            ("method", methods),
            ("budget", keep.iter().map(String::as_str).collect()),
            ("seed", seeds.iter().map(String::as_str).collect()),
        ];
        for (what, mut values) in axes {
            if values.is_empty() {
                return Err(Error::usage(format!("a comparison needs at least one {what}")));
            }
            values.sort_unstable();
            if let Some(pair) = values.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::usage(format!("the {what} {} is given twice", pair[0])));
            }
        }
        Ok(())
    }

    /// Fails where a finished cell was run for other budgets than these: it would not be run again, and the new ones would
    /// be missing.
    pub fn check_budgets(&self) -> Result<()> {
        for cell in self.cells().iter().filter(|cell| cell.finished()) {
            let Some(now) = budgets_of(&cell.arguments) else { continue };
            let records = self.keep.iter().map(|keep| cell.directory.join(format!("keep-{keep}/run.json")));
            let Some(path) = records.into_iter().find(|path| path.is_file()) else { continue };
            let record = RunRecord::read(&path)?;
            if let Some(then) = budgets_of(&record.arguments).filter(|then| *then != now) {
                return Err(Error::usage(format!(
                    "{} was run with --keep-flops {then}: give the same budgets, remove {}, or begin another --out",
                    cell.name,
                    cell.directory.display()
                )));
            }
        }
        Ok(())
    }

    /// All cells; a cell comes after the one it waits for.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &seed in &self.seeds {
            for task in &self.tasks {
                self.cells_of(task, seed, &mut cells);
            }
        }
        cells
    }

    /// The directory of a cell.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.out.join("cells").join(name)
    }

    /// Name of a cell of a task and seed.
    pub fn name(task: &TaskEntry, seed: u64, cell: &str) -> String {
        format!("{}/seed-{seed}/{cell}", task.name)
    }

    /// Name of the cell of the dense model that a seed prunes.
    pub fn dense(&self, task: &TaskEntry, seed: u64) -> String {
        Grid::name(task, self.dense_seed.unwrap_or(seed), DENSE)
    }

    /// Seeds of the dense models.
    pub fn dense_seeds(&self) -> Vec<u64> {
        self.dense_seed.map_or_else(|| self.seeds.clone(), |seed| vec![seed])
    }

    fn cells_of(&self, task: &TaskEntry, seed: u64, cells: &mut Vec<Cell>) {
        let keep = self.keep.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        let name = self.dense(task, seed);
        let dense = cells.iter().position(|cell| cell.name == name).unwrap_or_else(|| {
            let seed = self.dense_seed.unwrap_or(seed);
            cells.push(self.cell(task, seed, DENSE, "finetune", &self.model, &[&self.train_arguments]));
            cells.len() - 1
        });
        for method in &self.methods {
            let pruning =
                ["--method", &method.name, "--keep-flops", &keep, "--skip-infeasible", "--subdirectories"]
                    .map(String::from);
            if method.stage == Stage::Post {
                let discard = if self.keep_models { vec![] } else { vec!["--no-model".to_string()] };
                let stage = ["--stage", "post"].map(String::from);
                let model = self.directory(&name).display().to_string();
                let extra: [&[String]; 4] = [&pruning, &stage, &discard, &self.prune_arguments];
                let mut cell = self.cell(task, seed, &method.name, "run", &model, &extra);
                cell.after = Some(dense);
                cells.push(cell);
                continue;
            }
            let masks = format!("{}/masks", method.name);
            let mut cell =
                self.cell(task, seed, &masks, "prune", &self.model, &[&pruning, &self.prune_arguments]);
            cell.arguments.extend(["--stage", "pre"].map(String::from));
            let (index, folder) = (cells.len(), cell.directory.clone());
            cells.push(cell);
            for keep in &self.keep {
                let file = folder.join(format!("keep-{keep}")).join("masks.json");
                let mut own = vec!["--masks".to_string(), file.display().to_string()];
                if !self.keep_models {
                    own.push("--no-model".into());
                }
                let name = format!("{}/keep-{keep}", method.name);
                let mut cell =
                    self.cell(task, seed, &name, "finetune", &self.model, &[&own, &self.train_arguments]);
                cell.after = Some(index);
                cell.needs = Some(file);
                cells.push(cell);
            }
        }
    }

    fn cell(
        &self,
        task: &TaskEntry,
        seed: u64,
        name: &str,
        command: &str,
        model: &str,
        extra: &[&[String]],
    ) -> Cell {
        let name = Grid::name(task, seed, name);
        let directory = self.directory(&name);
        let mut arguments: Vec<String> = vec![command.into(), "--model".into(), model.into()];
        arguments.extend(["--task".into(), task.name.clone()]);
        if let Some(data) = &task.data {
            arguments.extend(["--data".into(), data.display().to_string()]);
        }
        arguments.extend(self.task_arguments.iter().cloned());
        extra.iter().for_each(|part| arguments.extend(part.iter().cloned()));
        arguments.extend(["--seed".into(), seed.to_string()]);
        arguments.extend(self.common.iter().cloned());
        arguments.extend(["--out".into(), directory.display().to_string()]);
        // An interrupted training goes on; where there is none, nothing is resumed.
        if command != "prune" {
            arguments.push("--resume".into());
        }
        Cell { name, directory, arguments, after: None, needs: None }
    }
}

/// The budgets of a command that prunes.
fn budgets_of(arguments: &[String]) -> Option<&str> {
    let at = arguments.iter().position(|word| word == "--keep-flops")?;
    arguments.get(at + 1).map(String::as_str)
}

/// How many cells each cell waits for, one after another: cells of equal depth are independent.
pub fn depths(cells: &[Cell]) -> Vec<usize> {
    let mut depths: Vec<usize> = Vec::with_capacity(cells.len());
    for cell in cells {
        depths.push(cell.after.map_or(0, |before| depths[before] + 1));
    }
    depths
}

/// A command line that a POSIX shell reads back to the same arguments.
pub fn shell_line(program: &Path, arguments: &[String]) -> String {
    let program = program.display().to_string();
    let words = std::iter::once(program.as_str()).chain(arguments.iter().map(String::as_str));
    words.map(shell_word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let method = |name: &str, stage| MethodEntry { name: name.into(), stage };
        Grid {
            model: "base".into(),
            tasks: ["mrpc", "rte"].map(|name| TaskEntry { name: name.into(), data: None }).into(),
            methods: vec![method("dual-cp", Stage::Pre), method("kcm", Stage::Post)],
            keep: vec![0.8, 0.6, 0.4],
            seeds: vec![1, 2],
            dense_seed: None,
            out: "o".into(),
            common: vec![],
            task_arguments: vec![],
            train_arguments: vec![],
            prune_arguments: vec![],
            keep_models: false,
        }
    }

    #[test]
    fn what_is_shared_is_one_cell() {
        let cells = grid().cells();
        // A task and seed: the dense model, masks and three fine-tunings of the one, the other for all budgets.
        assert_eq!(cells.len(), 4 * (1 + 4 + 1));
        let mut names: Vec<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cells.len());
        for (index, cell) in cells.iter().enumerate() {
            assert!(cell.after.is_none_or(|before| before < index));
        }
        assert_eq!(depths(&cells)[..6], [0, 0, 1, 1, 1, 1]);
        assert!(cells[5].arguments.join(" ").contains("--keep-flops 0.8,0.6,0.4"));
    }

    #[test]
    fn one_dense_model_may_serve_all_seeds() {
        let cells = Grid { dense_seed: Some(7), ..grid() }.cells();
        // Two tasks with a dense model each; two tasks and seeds with four cells of the one method and one of the other.
        assert_eq!(cells.len(), 2 + 4 * (4 + 1));
        for cell in &cells {
            assert_eq!(cell.name.ends_with("/dense"), cell.name.contains("/seed-7/"), "{}", cell.name);
            if let Some(before) = cell.after.filter(|_| cell.name.ends_with("/kcm")) {
                let task = cell.name.split('/').next().unwrap();
                assert_eq!(cells[before].name, format!("{task}/seed-7/dense"));
                let model = cells[before].directory.display().to_string();
                assert!(cell.arguments.contains(&model), "{:?}", cell.arguments);
            }
        }
    }

    #[test]
    fn axes_are_checked() {
        grid().check().unwrap();
        assert!(Grid { seeds: vec![], ..grid() }.check().is_err());
        assert!(Grid { keep: vec![0.5, 0.5], ..grid() }.check().is_err());
    }

    #[test]
    fn lines_survive_a_shell() {
        let line = shell_line(Path::new("/a b/secateur"), &["x'y".into(), String::new(), "0.8,0.6".into()]);
        assert_eq!(line, r"'/a b/secateur' 'x'\''y' '' 0.8,0.6");
    }
}
