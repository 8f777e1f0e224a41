//! `doctor`

use super::common::{DeviceArg, Outcome, Printer, table};
use crate::pipeline::{self, KERNEL_TOLERANCE, KernelCheck};
use anyhow::Result;
use serde::Serialize;

#[derive(clap::Args)]
pub struct Args {
    /// Check this device alone
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

#[derive(Serialize)]
struct Result_ {
    tolerance: f64,
    devices: Vec<DeviceCheck>,
}

#[derive(Serialize)]
struct DeviceCheck {
    device: String,
    name: String,
    sound: bool,
    kernels: Vec<KernelCheck>,
    failure: Option<String>,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let ids: Vec<String> = match &args.device {
        Some(id) => vec![id.clone()],
        None => pipeline::list_devices().into_iter().map(|d| d.id).collect(),
    };
    let mut devices = Vec::new();
    for id in ids {
        let opened = DeviceArg { device: id.clone() }.open();
        devices.push(match opened {
            Err(e) if args.device.is_some() => return Err(e),
            Err(e) => DeviceCheck {
                device: id,
                name: String::new(),
                sound: false,
                kernels: vec![],
                failure: Some(e.to_string()),
            },
            Ok(mut device) => {
                let kernels = pipeline::self_check(device.as_mut());
                let sound = kernels.iter().all(|k| k.failure.is_none());
                DeviceCheck { device: id, name: device.name(), sound, kernels, failure: None }
            }
        });
    }
    let sound = devices.iter().all(|d| d.sound);
    let result = Result_ { tolerance: KERNEL_TOLERANCE, devices };
    printer.result(&result, || text(&result));
    Ok(if sound { Outcome::Done } else { Outcome::Failed })
}

fn text(r: &Result_) -> String {
    let rows = r.devices.iter().map(|d| {
        let worst = d.kernels.iter().map(|k| k.worst).fold(0.0, f64::max);
        let sound = d.kernels.iter().filter(|k| k.failure.is_none()).count();
        vec![d.device.clone(), d.name.clone(), format!("{sound} of {}", d.kernels.len()), format!("{worst:.1e}")]
    });
    let mut out = table(&["device", "name", "sound kernels", "largest difference"], rows.collect());
    for d in &r.devices {
        let failed = d.kernels.iter().filter_map(|k| k.failure.as_ref().map(|f| format!("{}: {f}", k.primitive)));
        for line in d.failure.iter().cloned().chain(failed) {
            out += &format!("\n{}: {line}", d.device);
        }
    }
    out
}
