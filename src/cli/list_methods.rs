//! `secateur methods`

use std::fmt::Write as _;

use clap::{Args, ValueEnum as _};
use secateur::Result;
use secateur::prune::method::{Facts, Needs, Rows};
use secateur::report::table::Table;
use serde_json::{Value, json};

use super::context::Context;
use super::options::Profile;
use super::prune_options::Method;

/// List the methods that prune heads, neurons and layers, or one method's choices with what each profile sets.
///
/// Single choices are changed with `--choose NAME=VALUE` of `run` and `prune`. CAP-f, which trains while it prunes, is a command
/// of its own, `cap-f`; methods that prune single weights are those of `sparsify`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  secateur methods\n  secateur methods kcm")]
pub struct Methods {
    /// Show this method's choices.
    #[arg(value_enum)]
    method: Option<Method>,
}

impl Methods {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        match self.method {
            None => all(context),
            Some(method) => one(context, method),
        }
        Ok(())
    }
}

fn all(context: &Context) {
    let mut table = Table::new(&["method", "prunes", "looks at", ""]);
    let mut values = Vec::new();
    for method in Method::value_variants() {
        let needs = match method.job(Profile::Default).map(|m| m.facts()) {
            Some(facts) => needs(&facts),
            None => "inputs",
        };
        let order = match method.stage().name() {
            "pre" => "before fine-tuning",
            _ => "after fine-tuning",
        };
        table.row([method.name(), order.into(), needs.into(), method.about()]);
        values.push(json!({ "name": method.name(), "stage": method.stage().name(), "needs": needs }));
    }
    context.print(&json!(values), &table.render(false));
}

fn needs(facts: &Facts) -> &'static str {
    match facts.needs {
        Needs::Weights => "weights",
        Needs::Inputs => "inputs",
        Needs::Answers => "inputs and answers",
        Needs::Labels => "inputs and labels",
    }
}

fn one(context: &Context, method: Method) {
    let profiles = [Profile::Default, Profile::Paper, Profile::Authors];
    let found: Vec<_> = profiles.iter().filter_map(|&profile| method.job(profile)).collect();
    let [default, paper, authors] = found.as_slice() else {
        let text =
            format!("{}: its choices are the dual-cp options of `secateur prune --help`\n", method.name());
        context.print(&json!({ "name": method.name() }), &text);
        return;
    };
    let facts = default.facts();
    let rows = match facts.rows {
        Rows::Count(rows) => format!("{rows} rows"),
        Rows::Tokens(tokens) => format!("{tokens} tokens"),
    };
    let mut text = format!("{}\n{}\n", method.about(), facts.source);
    if facts.needs != Needs::Weights {
        let _ = writeln!(text, "Looks at {} of {rows} unless told otherwise.", needs(&facts));
    }
    let mut table = Table::new(&["choice", "default", "paper", "authors"]);
    let mut choices = Vec::new();
    for (name, value) in default.choices() {
        let of = |method: &secateur::prune::method::Method| method.choice(&name).unwrap_or_default();
        table.row([name.clone(), value.clone(), of(paper), of(authors)]);
        choices.push(json!({ "name": name, "default": value, "paper": of(paper), "authors": of(authors) }));
    }
    let _ = write!(text, "\n{}", table.render(false));
    let value: Value = json!({ "name": method.name(), "stage": method.stage().name(), "choices": choices });
    context.print(&value, &text);
}
