//! The command line: one file per subcommand, printing, progress, and errors as exit codes.

mod bench;
mod common;
mod compare;
mod completions;
mod data;
mod devices;
mod diff;
mod doctor;
mod eval;
mod export;
mod generate;
mod inject;
mod inspect;
mod merge;
mod output;
mod predictions;
mod progress;
mod quickstart;
mod report;
mod resume;
mod run;
mod runs;
mod settings;
mod starts;
mod train;
mod tune;
mod verify;

use clap::{CommandFactory, Parser, Subcommand};
use common::{Outcome, Printer};
use std::path::PathBuf;
use std::process::ExitCode;

/// Fine-tune an ONNX model with ResLoRA on any GPU, and merge it back into the same ONNX.
#[derive(Parser)]
#[command(name = "reslora-compile", version, max_term_width = 100, args_override_self = true)]
struct Cli {
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Read flags from a TOML file; flags given on the command line win
    #[arg(long, global = true, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a model's linear nodes, their roles and chains, and what training it would need
    Inspect(inspect::Args),
    /// Put adapters into a model
    Inject(inject::Args),
    /// Train the adapters of an injected model
    Train(train::Args),
    /// Fold trained adapters into the weights and take the adapters out
    Merge(merge::Args),
    /// Write a trained adapter as other programs read it
    Export(export::Args),
    /// Measure a model on a data set
    Eval(eval::Args),
    /// Show a data set as the model sees it: tokens, what is learnt, lengths and labels
    Data(data::Args),
    /// Train structures side by side from several seeds, with plain LoRA as the control
    Compare(compare::Args),
    /// Search structure, rank, alpha and learning rate within a budget of time
    Tune(tune::Args),
    /// Draw one run or several as a page of charts
    Report(report::Args),
    /// Generate text with a decoder, before and after training
    Generate(generate::Args),
    /// Run a model once on tensors exactly as given, and write every output
    Run(run::Args),
    /// Run two models on the same inputs with tract, and compare their outputs
    Verify(verify::Args),
    /// Time training steps on synthetic data
    Bench(bench::Args),
    /// Show which tensors and nodes of two files differ, and by how much
    Diff(diff::Args),
    /// List the devices that --device can name
    Devices(devices::Args),
    /// Check every kernel on every device
    Doctor(doctor::Args),
    /// Inject, train, merge and verify a small model that comes with the program
    Quickstart(quickstart::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// Runs the program.
pub fn main() -> ExitCode {
    quiet_drivers();
    let arguments = match settings::arguments(Cli::command(), std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return common::fail(&error),
    };
    let cli = Cli::try_parse_from(arguments).unwrap_or_else(|e| e.exit());
    let printer = Printer { json: cli.json };
    let result = match cli.command {
        Command::Inspect(args) => inspect::run(&args, &printer),
        Command::Inject(args) => inject::run(&args, &printer),
        Command::Train(args) => train::run(&args, &printer),
        Command::Merge(args) => merge::run(&args, &printer),
        Command::Export(args) => export::run(&args, &printer),
        Command::Eval(args) => eval::run(&args, &printer),
        Command::Data(args) => data::run(&args, &printer),
        Command::Compare(args) => compare::run(&args, &printer),
        Command::Tune(args) => tune::run(&args, &printer),
        Command::Report(args) => report::run(&args, &printer),
        Command::Generate(args) => generate::run(&args, &printer),
        Command::Run(args) => run::run(&args, &printer),
        Command::Verify(args) => verify::run(&args, &printer),
        Command::Bench(args) => bench::run(&args, &printer),
        Command::Diff(args) => diff::run(&args, &printer),
        Command::Devices(args) => devices::run(&args, &printer),
        Command::Doctor(args) => doctor::run(&args, &printer),
        Command::Quickstart(args) => quickstart::run(&args, &printer),
        Command::Completions(args) => completions::run(&args, &printer),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Ok(Outcome::AboveTolerance) => ExitCode::from(3),
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        Err(error) => common::fail(&error),
    }
}

/// Mesa's device-selection layer looks for a display and complains where there is none; it has nothing to select for us.
fn quiet_drivers() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: nothing else runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
