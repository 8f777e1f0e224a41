//! `quickstart`

use super::common::{Outcome, Printer};
use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: &Args, _: &Printer) -> Result<Outcome> {
    Ok(Outcome::Done)
}
