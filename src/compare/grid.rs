//! The cells of a comparison and the order they need.
//!
//! Names are paths below `cells` in the output directory, the task's label first: `mrpc/seed-1/dense` is the fine-tuned
//! model, `mrpc/seed-1/kcm` a method that prunes it, for all budgets at once; `mrpc/seed-1/dual-cp/masks` the masks of a
//! method that prunes before fine-tuning, and of its controls; `mrpc/seed-1/dual-cp/keep-0.6` a model fine-tuned under
//! them. A method that is turned round says so: `mrpc/seed-1/kcm-pre/masks`.
//!
//! Seeds may mean two things. With a dense model for each, deviations are of the whole procedure; with one for all
//! ([`Grid::dense_seed`]) they are of the calibration rows alone, as in the papers of methods that need no retraining,
//! which prune one published checkpoint.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::prune::Stage;
use crate::report::format::shell_word;

/// Name of the cell that fine-tunes the model unpruned.
pub const DENSE: &str = "dense";

/// The argument of a cell that leaves its pruned models out.
pub const NO_MODEL: &str = "--no-model";

/// A task and where its data are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEntry {
    /// Name of the task.
    pub name: String,
    /// What it is called here: its name, unless it stands more than once, on other data each time.
    pub label: String,
    /// Its data; none for the built-in task.
    pub data: Option<PathBuf>,
}

/// A method and when it prunes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodEntry {
    /// Name of the method.
    pub name: String,
    /// What it is called here; see [`MethodEntry::label_of`].
    pub label: String,
    /// Before or after fine-tuning.
    pub stage: Stage,
    /// Arguments of the commands that prune by it: its profile and single choices.
    pub arguments: Vec<String>,
    /// The method whose calibration and trees it is cut from, before fine-tuning: Dual-CP for itself and its controls.
    pub trees: Option<String>,
}

impl MethodEntry {
    /// The method's name, with the stage where it is not its `own`: both may stand in one comparison.
    pub fn label_of(name: &str, stage: Stage, own: Stage) -> String {
        if stage == own { name.to_string() } else { format!("{name}-{}", stage.name()) }
    }

    /// The cell that makes the masks of a method that prunes first, and the folder with a directory for each budget: the
    /// cell itself, or the control's part of it.
    pub fn masks(&self) -> (String, String) {
        let cell = format!("{}/masks", self.trees.as_ref().unwrap_or(&self.label));
        let own = self.trees.as_ref().is_none_or(|trees| *trees == self.name);
        let folder = if own { cell.clone() } else { format!("{cell}/{}", self.name) };
        (cell, folder)
    }
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
    /// Arguments of every command: device and precision.
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
    /// is finished; whether it is the cell asked for, its record tells ([`super::identity`]).
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

    /// Whether it has nothing to do: the cell before is finished and left out the file this one needs.
    pub fn out_of_reach(&self, cells: &[Cell]) -> bool {
        self.after.is_some_and(|before| cells[before].finished())
            && self.needs.as_ref().is_some_and(|file| !file.is_file())
    }
}

impl Grid {
    /// Fails on an empty or repeated axis, on a label that cannot name a directory, and on a budget that is no fraction.
    pub fn check(&self) -> Result<()> {
        let tasks: Vec<&str> = self.tasks.iter().map(|task| task.label.as_str()).collect();
        let methods: Vec<&str> = self.methods.iter().map(|method| method.label.as_str()).collect();
        let keep: Vec<String> = self.keep.iter().map(f64::to_string).collect();
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let named = |label: &str| !label.is_empty() && !label.starts_with('.') && label.chars().all(plain);
        if let Some(label) = tasks.iter().find(|label| !named(label)) {
            return Err(Error::usage(format!(
                "the task label \"{label}\" names a directory: letters, digits and -_. only, the first no dot"
            )));
        }
        if let Some(wrong) = self.keep.iter().find(|keep| !(**keep > 0.0 && **keep <= 1.0)) {
            return Err(Error::usage(format!("--keep-flops {wrong}: a fraction above 0 and at most 1")));
        }
        let axes = [
            ("task", tasks, "; NAME:LABEL=PATH tells two of one name apart"),
            ("method", methods, ""),
            ("budget", keep.iter().map(String::as_str).collect(), ""),
            ("seed", seeds.iter().map(String::as_str).collect(), ""),
        ];
        for (what, mut values, advice) in axes {
            if values.is_empty() {
                return Err(Error::usage(format!("a comparison needs at least one {what}")));
            }
            values.sort_unstable();
            if let Some(pair) = values.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::usage(format!("the {what} {} is given twice{advice}", pair[0])));
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
        format!("{}/seed-{seed}/{cell}", task.label)
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
            let shared = method.trees.as_ref().filter(|_| method.stage == Stage::Pre);
            let by = shared.unwrap_or(&method.name);
            let words = ["--method", by, "--stage", method.stage.name(), "--keep-flops", &keep];
            let mut pruning: Vec<String> = words.map(String::from).into();
            pruning.extend(["--skip-infeasible", "--subdirectories"].map(String::from));
            pruning.extend(shared.map(|_| "--with-controls".to_string()));
            pruning.extend(method.arguments.iter().chain(&self.prune_arguments).cloned());
            let discard = if self.keep_models { vec![] } else { vec![NO_MODEL.to_string()] };
            if method.stage == Stage::Post {
                let model = self.directory(&name).display().to_string();
                let mut cell = self.cell(task, seed, &method.label, "run", &model, &[&pruning, &discard]);
                cell.after = Some(dense);
                cells.push(cell);
                continue;
            }
            let (masks, folder) = method.masks();
            let name = Grid::name(task, seed, &masks);
            let index = cells.iter().position(|cell| cell.name == name).unwrap_or_else(|| {
                cells.push(self.cell(task, seed, &masks, "prune", &self.model, &[&pruning]));
                cells.len() - 1
            });
            let folder = self.directory(&Grid::name(task, seed, &folder));
            for keep in &self.keep {
                let file = folder.join(format!("keep-{keep}")).join("masks.json");
                let own = ["--masks".to_string(), file.display().to_string()];
                let name = format!("{}/keep-{keep}", method.label);
                let extra: [&[String]; 3] = [&own, &discard, &self.train_arguments];
                let mut cell = self.cell(task, seed, &name, "finetune", &self.model, &extra);
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
        let method = |name: &str, stage| MethodEntry {
            name: name.into(),
            label: name.into(),
            stage,
            arguments: vec![],
            trees: None,
        };
        let task = |name: &str| TaskEntry { name: name.into(), label: name.into(), data: None };
        Grid {
            model: "base".into(),
            tasks: ["mrpc", "rte"].map(task).into(),
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
    fn controls_are_cut_from_the_trees_of_their_method() {
        let mut grid = grid();
        let trees = Some("dual-cp".to_string());
        let entry = |name: &str| MethodEntry {
            name: name.into(),
            label: name.into(),
            trees: trees.clone(),
            ..grid.methods[0].clone()
        };
        let methods = vec![entry("random"), entry("dual-cp"), entry("worst")];
        grid.methods = methods;
        let cells = grid.cells();
        // A task and seed: the dense model, masks of all three, three fine-tunings of each.
        assert_eq!(cells.len(), 4 * (1 + 1 + 9));
        assert_eq!(cells[1].name, "mrpc/seed-1/dual-cp/masks");
        assert!(cells[1].arguments.join(" ").contains("--method dual-cp"));
        let masks = |name: &str| cells.iter().find(|cell| cell.name == name).unwrap().needs.clone().unwrap();
        let folder = Path::new("o/cells/mrpc/seed-1/dual-cp/masks");
        assert_eq!(masks("mrpc/seed-1/dual-cp/keep-0.6"), folder.join("keep-0.6/masks.json"));
        assert_eq!(masks("mrpc/seed-1/worst/keep-0.6"), folder.join("worst/keep-0.6/masks.json"));
    }

    #[test]
    fn a_method_may_stand_before_and_after() {
        let mut grid = grid();
        let label = MethodEntry::label_of("kcm", Stage::Pre, Stage::Post);
        grid.methods.push(MethodEntry { label, stage: Stage::Pre, ..grid.methods[1].clone() });
        grid.check().unwrap();
        let cells = grid.cells();
        let stage = |name: &str| {
            let cell = cells.iter().find(|cell| cell.name == name).unwrap();
            let at = cell.arguments.iter().position(|word| word == "--stage").unwrap();
            cell.arguments[at + 1].clone()
        };
        assert_eq!(stage("mrpc/seed-1/kcm"), "post");
        assert_eq!(stage("mrpc/seed-1/kcm-pre/masks"), "pre");
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
        assert!(Grid { keep: vec![1.5], ..grid() }.check().is_err());
        let labels = |labels: [&str; 2]| {
            let mut grid = grid();
            grid.tasks.iter_mut().zip(labels).for_each(|(task, label)| task.label = label.into());
            grid.check()
        };
        labels(["wikitext-2", "ptb"]).unwrap();
        for wrong in [["a", "a"], ["a/b", "c"], ["", "c"], ["..", "c"]] {
            assert!(labels(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lines_survive_a_shell() {
        let line = shell_line(Path::new("/a b/secateur"), &["x'y".into(), String::new(), "0.8,0.6".into()]);
        assert_eq!(line, r"'/a b/secateur' 'x'\''y' '' 0.8,0.6");
    }
}
