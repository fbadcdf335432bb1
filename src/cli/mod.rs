//! The command line: one file a command, shared options in `options`, what every command does around its work in
//! `context`, and the discipline of output directories in `output`.

mod bench;
mod cap;
mod compare;
mod context;
mod contrast;
mod demo;
mod doctor;
mod dual_cp;
mod evaluate;
mod export;
mod finetune;
mod forward;
mod inspect;
mod latency;
mod list_methods;
mod load;
mod methods;
mod options;
mod output;
mod pretrain;
mod prune;
mod prune_options;
mod run;
mod sparsify;
mod training;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use context::Context;
use options::GlobalOptions;
use secateur::Result;

/// Prunes and fine-tunes BERT- and GPT-2-class language models on its own compute engine.
///
/// Models are directories in the Hugging Face layout (config.json, model.safetensors, tokenizer files), or names found
/// in the local Hugging Face cache. Nothing is downloaded, nothing runs but this program.
#[derive(Parser, Debug)]
#[command(name = "secateur", version, max_term_width = 110, subcommand_required = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::Demo),
    Run(run::Run),
    Compare(compare::Compare),
    Methods(list_methods::Methods),
    Prune(prune::Prune),
    Sparsify(sparsify::Sparsify),
    CapF(cap::CapF),
    Finetune(finetune::Finetune),
    Evaluate(evaluate::Evaluate),
    Pretrain(pretrain::Pretrain),
    Inspect(inspect::Inspect),
    Export(export::Export),
    Forward(forward::Forward),
    Doctor(doctor::Doctor),
    Bench(bench::Bench),
}

impl Command {
    /// Whether it computes anything.
    fn computes(&self) -> bool {
        !matches!(self, Command::Methods(_) | Command::Inspect(_) | Command::Export(_) | Command::Doctor(_))
    }

    /// Whether it computes gradients.
    fn trains(&self) -> bool {
        match self {
            Command::Demo(_)
            | Command::Run(_)
            | Command::Compare(_)
            | Command::Sparsify(_)
            | Command::CapF(_)
            | Command::Finetune(_)
            | Command::Pretrain(_) => true,
            Command::Bench(command) => command.trains(),
            _ => false,
        }
    }

    fn run(self, context: &mut Context) -> Result<()> {
        match self {
            Command::Demo(command) => command.run(context),
            Command::Run(command) => command.run(context),
            Command::Compare(command) => command.run(context),
            Command::Methods(command) => command.run(context),
            Command::Prune(command) => command.run(context),
            Command::Sparsify(command) => command.run(context),
            Command::CapF(command) => command.run(context),
            Command::Finetune(command) => command.run(context),
            Command::Evaluate(command) => command.run(context),
            Command::Pretrain(command) => command.run(context),
            Command::Inspect(command) => command.run(context),
            Command::Export(command) => command.run(context),
            Command::Forward(command) => command.run(context),
            Command::Doctor(command) => command.run(context),
            Command::Bench(command) => command.run(context),
        }
    }
}

/// Exit status 0: done; 1: failed; 2: wrong usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let result = Context::new(cli.global, cli.command.computes()).and_then(|mut context| {
        if cli.command.trains() {
            context.check_trains()?;
        }
        cli.command.run(&mut context)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
