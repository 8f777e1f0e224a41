//! `completions`

use super::common::{Outcome, Printer};
use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

#[derive(clap::Args)]
pub struct Args {
    shell: Shell,
}

pub fn run(args: &Args, _: &Printer) -> Result<Outcome> {
    let mut command = super::Cli::command();
    clap_complete::generate(args.shell, &mut command, "reslora-compile", &mut std::io::stdout());
    Ok(Outcome::Done)
}
