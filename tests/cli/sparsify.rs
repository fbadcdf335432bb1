//! `sparsify` on models so small that a run takes seconds: every method leaves masks and records, what was trained loads
//! again, an interrupted run continues, and wrong input is one clear error each.

use std::path::{Path, PathBuf};

use secateur::model::{Head, Model, ModelConfig};
use serde_json::Value;

use crate::train::{assert_whole_model, failure, pretrained, run, secateur, text};

/// Rows "a and b": small if the first is below the second.
fn table(folder: &Path) -> PathBuf {
    let names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let data = folder.join("rows");
    std::fs::create_dir_all(&data).unwrap();
    for (name, count) in [("train.csv", 48), ("dev.csv", 16)] {
        let row = |i: usize| {
            let (a, b) = (i * 7 % 10, i * 3 / 2 % 10);
            format!("{} and {},{}\n", names[a], names[b], if a < b { "small" } else { "large" })
        };
        let rows: String = (0..count).map(row).collect();
        std::fs::write(data.join(name), format!("text,label\n{rows}")).unwrap();
    }
    data
}

pub struct Fixture {
    folder: tempfile::TempDir,
    pub model: PathBuf,
    pub data: PathBuf,
}

impl Fixture {
    pub fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let more = ["--train-tokenizer", "300", "--steps", "4", "--batch-size", "4"];
        let (model, _) = pretrained(folder.path(), "masked-lm", &more);
        let data = table(folder.path());
        Fixture { folder, model, data }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The model, fine-tuned.
    pub fn teacher(&self) -> PathBuf {
        let teacher = self.path("teacher");
        let mut tune = vec!["finetune", "--model", text(&self.model), "--task", "table"];
        tune.extend(["--data", text(&self.data), "--out", text(&teacher), "--epochs", "1"]);
        run(&tune);
        teacher
    }

    /// Arguments of a run that writes to `out`.
    fn arguments<'a>(&'a self, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec!["sparsify", "--model", text(&self.model), "--task", "table"];
        arguments.extend(["--data", text(&self.data), "--out", text(out), "--epochs", "3"]);
        arguments.extend(["--batch-size", "8", "--quiet"]);
        arguments.extend(more);
        arguments
    }

    fn sparsify(&self, name: &str, more: &[&str]) -> (PathBuf, Value) {
        let out = self.path(name);
        let record = run(&self.arguments(&out, more));
        assert!(out.join("masks.safetensors").is_file() && out.join("run.json").is_file());
        assert!(out.join("report.html").is_file() && !out.join("checkpoints").exists());
        (out, record)
    }

    fn refused(&self, more: &[&str], part: &str) {
        let out = self.path("refused");
        let (status, message) = failure(&self.arguments(&out, more));
        assert_eq!(status, 2, "{more:?}: {message}");
        assert!(message.contains(part), "{more:?}: {message}");
        assert!(!out.exists() && !self.path("refused.partial").exists(), "{more:?} left something");
    }
}

const SMP: [&str; 4] = ["--method", "smp", "--keep-weights", "0.3"];
const WORDS: [&str; 2] = ["--label-words", "one,two"];

#[test]
fn every_method_leaves_masks_of_the_asked_size() {
    let fixture = Fixture::new();
    for method in ["smp", "movement", "soft-movement", "magnitude", "l0"] {
        let mut more = vec!["--method", method, "--keep-weights", "0.3"];
        if method == "smp" {
            more.extend(WORDS);
        }
        if matches!(method, "soft-movement" | "l0") {
            more.push("--snap");
        }
        let (out, record) = fixture.sparsify(method, &more);
        let kept = record["result"]["keep_weights"].as_f64().unwrap();
        // Whole matrices round down: at most one weight each of 256.
        assert!(
            kept <= 0.3 && kept > 0.3 - 1.0 / 256.0 - if method == "smp" { 0.1 } else { 0.0 },
            "{method}: {kept}"
        );
        assert_eq!(record["method"]["name"], method);
        assert_eq!(record["training"][0]["steps"], 18);
        if method == "smp" {
            assert!(!out.join("model.safetensors").exists(), "SMP's model is the one it was given");
            continue;
        }
        assert_whole_model(&out);
        let evaluated =
            run(&["evaluate", "--model", text(&out), "--task", "table", "--data", text(&fixture.data)]);
        assert_eq!(evaluated["evaluations"][0]["metrics"], record["evaluations"][0]["metrics"], "{method}");
    }
}

#[test]
fn a_teacher_must_be_of_the_same_task() {
    let fixture = Fixture::new();
    let (dense, masks) = (fixture.path("dense"), fixture.path("taught"));
    let (model, data) = (text(&fixture.model), text(&fixture.data));
    run(&[
        "finetune",
        "--model",
        model,
        "--task",
        "table",
        "--data",
        data,
        "--out",
        text(&dense),
        "--epochs",
        "1",
    ]);
    let more = [&SMP[..], &WORDS, &["--teacher", text(&dense)]].concat();
    let record = run(&fixture.arguments(&masks, &more));
    let choices = &record["method"]["choices"];
    assert!(choices["distillation"]["value"].as_str().unwrap().contains("0.5 teacher"), "{choices}");
    // Classes in another order are another question.
    let path = dense.join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let swapped =
        config.replace("\"small\"", "\"x\"").replace("\"large\"", "\"small\"").replace("\"x\"", "\"large\"");
    assert!(swapped != config);
    std::fs::write(&path, swapped).unwrap();
    fixture.refused(&more, "numbers its classes");
    // A model without a head for the task is no teacher.
    fixture.refused(&[&SMP[..], &WORDS, &["--teacher", model]].concat(), "the teacher");
}

/// A classifier of the fixture's task, twice as wide as its model.
pub fn wide_classifier(fixture: &Fixture, narrow: &Path) -> PathBuf {
    let out = fixture.path("wide");
    let text = std::fs::read_to_string(narrow.join("config.json")).unwrap();
    let mut fields: Value = serde_json::from_str(&text).unwrap();
    fields["hidden_size"] = 32.into();
    let Value::Object(fields) = fields else { unreachable!("a JSON object") };
    let config = ModelConfig::from_json(fields, Path::new("config.json")).unwrap();
    Model::from_config(config, Head::Classification { labels: 2 }, 1).unwrap().save(&out).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(narrow.join(name), out.join(name)).unwrap();
    }
    out
}

#[test]
fn contrastive_pruning_learns_from_a_teacher_of_its_width() {
    let fixture = Fixture::new();
    let cap = |method: &'static str| ["--method", method, "--keep-weights", "0.3"];
    fixture.refused(&cap("cap-m"), "--teacher");
    fixture.refused(&cap("cap-soft"), "--teacher");
    let (teacher, data) = (fixture.teacher(), text(&fixture.data));
    let taught = |method, more: &[&'static str]| {
        let mut all: Vec<String> = cap(method).map(String::from).to_vec();
        all.extend(["--teacher", text(&teacher)].map(String::from));
        all.extend(more.iter().map(|option| option.to_string()));
        all
    };
    for method in ["cap-m", "cap-soft"] {
        let sentence = if method == "cap-m" { "cls" } else { "mean" };
        let arguments = taught(method, &["--extra-candidates", "12", "--sentence", sentence]);
        let (out, record) =
            fixture.sparsify(method, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_whole_model(&out);
        let choices = &record["method"]["choices"];
        assert_eq!(choices["contrastive-weights"]["value"], "0.1,10");
        assert_eq!(choices["extra-candidates"]["value"], "12");
        assert_eq!(choices["sentence"]["value"], sentence);
        assert!(choices["distillation"]["value"].as_str().unwrap().starts_with("0.1 task, 0.9 teacher"));
        let evaluated = run(&["evaluate", "--model", text(&out), "--task", "table", "--data", data]);
        assert_eq!(evaluated["evaluations"][0]["metrics"], record["evaluations"][0]["metrics"], "{method}");
    }
    let refused = |arguments: Vec<String>, part| {
        fixture.refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), part);
    };
    refused(taught("cap-m", &["--contrastive-weights", "1"]), "two numbers");
    refused(taught("cap-m", &["--contrastive-weights=-1,0"]), "at least 0");
    refused(taught("cap-m", &["--contrastive-temperature", "0"]), "positive");
    refused(taught("cap-m", &["--lambda", "3"]), "belongs to");
    refused(taught("movement", &["--extra-candidates", "3"]), "belongs to");
    refused(taught("movement", &["--sentence", "mean"]), "belongs to");
    let wide = wide_classifier(&fixture, &teacher);
    let arguments = [&cap("cap-m")[..], &["--teacher", text(&wide)]].concat();
    fixture.refused(&arguments, "same hidden size");
}

#[test]
fn wrong_choices_are_refused_before_anything_is_trained() {
    let fixture = Fixture::new();
    for keep in ["0", "1.5", "-0.1", "nan"] {
        let keep = format!("--keep-weights={keep}");
        fixture.refused(&[&["--method", "smp", &keep][..], &WORDS].concat(), "above 0 and at most 1");
    }
    let smp = |more: &[&'static str]| [&SMP[..], more].concat();
    fixture.refused(&smp(&[]), "--label-words");
    fixture.refused(&smp(&["--label-words", "one"]), "1 label words for the 2 outputs");
    fixture.refused(&smp(&["--label-words", "one,one"]), "two classes");
    fixture.refused(&smp(&["--label-words", "one,unbelievable"]), "is not one token");
    fixture.refused(&smp(&["--label-words", "one,two", "--prune-steps", "19"]), "longer than the training");
    fixture.refused(&smp(&["--label-words", "one,two", "--profile", "authors"]), "longer than the training");
    fixture.refused(&smp(&["--label-words", "one,two", "--snap"]), "--snap");
    fixture.refused(&smp(&["--label-words", "one,two", "--lambda=-1"]), "--lambda");
    let words = |more: &[&'static str]| [&SMP[..], &WORDS, more].concat();
    for option in ["--learning-rate", "--weight-decay"] {
        fixture.refused(&words(&[option, "0.01"]), "belongs to what is trained beside the scores");
    }
    let with = |method: &'static str, more: &[&'static str]| {
        [&["--method", method, "--keep-weights", "0.3"][..], more].concat()
    };
    for option in [&["--trained-head"][..], &["--label-words", "a,b"], &["--lambda", "3"]] {
        fixture.refused(&with("movement", option), "belongs to");
    }
    for masking in ["fractions", "threshold"] {
        fixture.refused(&with("movement", &["--masking", masking]), "belong to --method smp");
    }
    for method in ["soft-movement", "l0"] {
        fixture.refused(&with(method, &["--masking", "global"]), "methods that rank");
    }
    for option in [["--prune-steps", "4"], ["--schedule", "linear"], ["--schedule-warmup", "1"]] {
        fixture.refused(&with("l0", &option), "belongs to");
    }
    fixture.refused(&words(&["--schedule-rests", "1,1"]), "belongs to movement");
    fixture.refused(&with("movement", &["--schedule-rests", "1"]), "two whole numbers");
    fixture
        .refused(&with("movement", &["--schedule-warmup", "1", "--prune-steps", "4"]), "cannot be used with");
}

#[test]
fn the_rests_of_a_schedule_can_be_chosen() {
    let fixture = Fixture::new();
    let magnitude = ["--method", "magnitude", "--keep-weights", "0.3", "--steps", "3"];
    // A warm-up of a tenth is one step, and rests of one and two steps leave none of three.
    fixture.refused(&magnitude, "--schedule-warmup");
    for more in [&["--warmup", "0"][..], &["--schedule-warmup", "0"], &["--schedule-rests", "1,1"]] {
        let (_, record) = fixture.sparsify(&more.concat(), &[&magnitude[..], more].concat());
        let kept = record["result"]["keep_weights"].as_f64().unwrap();
        assert!(kept <= 0.3 && kept > 0.3 - 1.0 / 256.0, "{more:?}: {kept}");
        let choices = &record["method"]["choices"];
        assert_eq!(choices["schedule-rests"]["given"], more[0] == "--schedule-rests", "{choices}");
    }
}

#[test]
fn a_fraction_that_is_missed_is_told() {
    let fixture = Fixture::new();
    for method in ["soft-movement", "l0"] {
        // Without a regulariser nothing pulls scores below the threshold.
        let all = ["--method", method, "--keep-weights", "0.3", "--lambda", "0"];
        let (_, record) = fixture.sparsify(&format!("missed-{method}"), &all);
        assert!(record["result"]["keep_weights"].as_f64().unwrap() > 0.31, "{record}");
        let warnings = record["warnings"].to_string();
        assert!(warnings.contains("not 30") && warnings.contains("--snap"), "{warnings}");
        assert!(warnings.contains("--search-lambda"), "{warnings}");
        let snapped = [&all[..], &["--snap"]].concat();
        let (_, record) = fixture.sparsify(&format!("snapped-{method}"), &snapped);
        assert!(!record["warnings"].to_string().contains("--snap"), "{}", record["warnings"]);
    }
}

#[test]
fn movement_with_one_threshold_shares_the_budget_among_all_matrices() {
    let fixture = Fixture::new();
    let ranked = |method, more: &[&'static str]| {
        let all = ["--method", method, "--keep-weights", "0.3", "--masking", "global"];
        let (out, record) =
            fixture.sparsify(&format!("global-{method}{}", more.len()), &[&all[..], more].concat());
        let (kept, all) = (&record["result"]["weights_kept"], &record["result"]["weights"]);
        let exact = (0.3 * all.as_f64().unwrap()) as u64;
        // Movement's code keeps what is at the threshold as well.
        assert_eq!(kept.as_u64(), Some(exact + u64::from(!more.is_empty())), "{method} {more:?}");
        let masks = out.join("masks.safetensors");
        let shown = run(&["inspect", "--model", text(&fixture.model), "--mask-file", text(&masks)]);
        let matrices = shown["result"]["weights"][0]["matrices"].as_array().unwrap().clone();
        let share = |m: &Value| m["kept"].as_f64().unwrap() / m["total"].as_f64().unwrap();
        let shares: Vec<f64> = matrices.iter().map(share).collect();
        assert!(shares.iter().any(|share| (share - 0.3).abs() > 0.01), "{method}: {shares:?}");
    };
    ranked("movement", &[]);
    ranked("magnitude", &[]);
    ranked("movement", &["--profile", "authors"]);
}

#[test]
fn a_search_for_lambda_takes_the_nearest_training() {
    let fixture = Fixture::new();
    for method in ["soft-movement", "l0"] {
        let more = ["--method", method, "--keep-weights", "0.6", "--search-lambda", "3"];
        let (out, record) = fixture.sparsify(&format!("searched-{method}"), &more);
        let trials = record["result"]["lambda_search"].as_array().unwrap();
        let distance = |trial: &Value| (trial["keep_weights"].as_f64().unwrap() - 0.6).abs();
        let nearest = trials.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
        assert!((2..=3).contains(&trials.len()) || distance(nearest) <= 0.02 * 0.6, "{trials:?}");
        // More weight of the regulariser never keeps more.
        for pair in trials.windows(2) {
            let [a, b] = [&pair[0], &pair[1]]
                .map(|t| (t["lambda"].as_f64().unwrap(), t["keep_weights"].as_f64().unwrap()));
            assert!((a.0 - b.0) * (a.1 - b.1) <= 0.0, "{trials:?}");
        }
        // What was written is the nearest trial: masks, model and record.
        assert_eq!(record["result"]["keep_weights"], nearest["keep_weights"], "{method}");
        let lambda = record["method"]["choices"]["lambda"]["value"].as_str().unwrap();
        assert_eq!(lambda.parse::<f64>().ok(), nearest["lambda"].as_f64(), "{method}");
        assert_eq!(
            record["training"].as_array().unwrap().len(),
            1,
            "the other trainings are not of this model"
        );
        let data = text(&fixture.data);
        let evaluated = run(&["evaluate", "--model", text(&out), "--task", "table", "--data", data]);
        assert_eq!(evaluated["evaluations"][0]["metrics"], record["evaluations"][0]["metrics"], "{method}");
    }
}

#[test]
fn a_model_with_its_masks_applied_knows_its_label_words() {
    let fixture = Fixture::new();
    let (masks, record) = fixture.sparsify("masks", &[&SMP[..], &WORDS].concat());
    let (masks, model, data) = (masks.join("masks.safetensors"), text(&fixture.model), text(&fixture.data));
    let evaluate =
        |model: &Path| run(&["evaluate", "--model", text(model), "--task", "table", "--data", data]);
    for format in ["hf", "sparse"] {
        let out = fixture.path(format);
        let export = ["export", "--model", model, "--mask-file", text(&masks), "--format", format];
        let output = secateur(&[&export[..], &["--out", text(&out)]].concat()).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && told.contains("label words one,two answer"), "{told}");
        assert_eq!(
            evaluate(&out)["evaluations"][0]["metrics"],
            record["evaluations"][0]["metrics"],
            "{format}"
        );
        // The words come out again with the masks.
        let again = fixture.path(&format!("{format}-again"));
        let export =
            ["export", "--model", text(&out), "--format", "safetensors-masks", "--out", text(&again)];
        run(&export);
        assert_eq!(std::fs::read(again.join("masks.safetensors")).unwrap(), std::fs::read(&masks).unwrap());
    }
    let npy = fixture.path("npy");
    let export = ["export", "--model", model, "--mask-file", text(&masks), "--format", "npy"];
    let output = secateur(&[&export[..], &["--out", text(&npy)]].concat()).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("give `evaluate --label-words one,two`"), "{told}");
    // A head of its own answers without them.
    let (exported, tuned) = (fixture.path("hf"), fixture.path("tuned"));
    let tune = ["finetune", "--model", text(&exported), "--task", "table", "--data", data, "--steps", "1"];
    let record = run(&[&tune[..], &["--out", text(&tuned)]].concat());
    assert_eq!(evaluate(&tuned)["evaluations"][0]["metrics"], record["evaluations"][0]["metrics"]);
}

#[test]
fn gpt2_learns_masks_for_text_and_for_classes() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--train-tokenizer", "300", "--epochs", "2", "--batch-size", "4", "--learning-rate", "0.01"];
    let (model, _) = pretrained(folder.path(), "causal-lm", &more);
    let (corpus, rows) = (folder.path().join("text"), table(folder.path()));
    let lm = ["--task", "lm", "--data", text(&corpus), "--max-length", "32"];
    let classes = ["--task", "table", "--data", text(&rows)];
    for (name, task, more) in [("lm", &lm[..], &[][..]), ("classes", &classes[..], &WORDS[..])] {
        let out = folder.path().join(format!("masks-{name}"));
        let sparsify = ["sparsify", "--model", text(&model), "--out", text(&out), "--epochs", "2", "--quiet"];
        let record = run(&[&sparsify[..], &SMP, task, more].concat());
        assert!(!out.join("model.safetensors").exists(), "{name}: the frozen model is the one given");
        let losses = record["training"][0]["losses"].as_array().unwrap();
        assert!(losses.iter().all(|loss| loss["loss"].as_f64().unwrap().is_finite()), "{losses:?}");
        // The masks and the model they were learnt on give what the training measured.
        let masks = out.join("masks.safetensors");
        let evaluate = ["evaluate", "--model", text(&model), "--mask-file", text(&masks)];
        let evaluated = run(&[&evaluate[..], task].concat());
        assert_eq!(evaluated["evaluations"][0]["metrics"], record["evaluations"][0]["metrics"], "{name}");
        assert!(evaluated["result"]["weights_kept"].as_u64() < evaluated["result"]["weights"].as_u64());
    }
}

#[test]
fn a_language_model_learns_from_a_language_model() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--train-tokenizer", "300", "--epochs", "1", "--batch-size", "4", "--learning-rate", "0.01"];
    let (model, _) = pretrained(folder.path(), "causal-lm", &more);
    let (corpus, rows) = (folder.path().join("text"), table(folder.path()));
    let path = |name: &str| folder.path().join(name);
    let lm = ["--task", "lm", "--data", text(&corpus), "--max-length", "32"];
    let tune = |task: &[&str], out: &Path| {
        let fixed = ["finetune", "--model", text(&model), "--out", text(out), "--epochs", "1"];
        run(&[&fixed[..], task].concat());
    };
    let (teacher, classifier) = (path("teacher"), path("classifier"));
    tune(&lm, &teacher);
    tune(&["--task", "table", "--data", text(&rows)], &classifier);
    let sparsify = |method: &str, out: &Path, more: &[&str]| {
        let fixed =
            ["sparsify", "--model", text(&model), "--method", method, "--keep-weights", "0.3", "--quiet"];
        let fixed = [&fixed[..], &["--out", text(out), "--steps", "12"], &lm].concat();
        [&fixed[..], more].concat().iter().map(|word| word.to_string()).collect::<Vec<String>>()
    };
    for method in ["smp", "movement"] {
        let out = path(method);
        let arguments = sparsify(method, &out, &["--teacher", text(&teacher)]);
        let record = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let choices = &record["method"]["choices"];
        assert!(choices["distillation"]["value"].as_str().unwrap().contains("0.5 teacher"), "{choices}");
        let masks = out.join("masks.safetensors");
        let evaluate = match method {
            "smp" => vec!["evaluate", "--model", text(&model), "--mask-file", text(&masks)],
            _ => vec!["evaluate", "--model", text(&out)],
        };
        let evaluated = run(&[&evaluate[..], &lm].concat());
        assert_eq!(evaluated["evaluations"][0]["metrics"], record["evaluations"][0]["metrics"], "{method}");
    }
    // Without a language-model head, of another length, with options for tasks of sentences: one error each.
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(teacher.join("config.json")).unwrap()).unwrap();
    config["n_positions"] = 16.into();
    let Value::Object(fields) = config else { unreachable!("a JSON object") };
    let short = path("short");
    let config = ModelConfig::from_json(fields, Path::new("config.json")).unwrap();
    Model::from_config(config, Head::CausalLm, 1).unwrap().save(&short).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(teacher.join(name), short.join(name)).unwrap();
    }
    let out = path("refused");
    for (method, more, part) in [
        ("smp", vec!["--teacher", text(&classifier)], "the teacher has a head for"),
        ("smp", vec!["--teacher", text(&short)], "16 positions"),
        ("cap-m", vec!["--teacher", text(&teacher)], "compare sentences"),
        ("smp", vec!["--label-words", "one,two"], "answers with its own head"),
        ("smp", vec!["--trained-head"], "answers with its own head"),
    ] {
        let arguments = sparsify(method, &out, &more);
        let (status, message) = failure(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(status == 2 && message.contains(part), "{more:?}: {status} {message}");
        assert!(!out.exists() && !path("refused.partial").exists(), "{more:?} left something");
    }
}
