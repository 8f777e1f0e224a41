//! `devices`

use super::common::{Outcome, Printer, table};
use crate::pipeline::{self, DeviceInfo};
use anyhow::Result;
use serde::Serialize;

#[derive(clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Result_ {
    devices: Vec<DeviceInfo>,
    /// What `--device auto` takes.
    auto: String,
}

pub fn run(_: &Args, printer: &Printer) -> Result<Outcome> {
    let devices = pipeline::list_devices();
    let hardware = devices.iter().find(|d| d.id != "cpu" && !d.software);
    let auto = hardware.map_or("cpu".to_string(), |d| d.id.clone());
    let result = Result_ { devices, auto };
    printer.result(&result, || {
        let rows = result.devices.iter().map(|d| {
            let binding = d.value_mib.map_or("-".into(), |m| format!("{m} MiB"));
            vec![d.id.clone(), d.name.clone(), d.kind.clone(), d.backend.clone(), binding, d.driver.clone()]
        });
        let list = table(&["device", "name", "kind", "backend", "binding", "driver"], rows.collect());
        format!("{list}\n\n--device auto is {}", result.auto)
    });
    Ok(Outcome::Done)
}
