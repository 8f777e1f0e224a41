//! `doctor`

use super::common::{DeviceArg, Outcome, Printer, table};
use crate::pipeline::{self, KERNEL_TOLERANCE, KernelCheck, TRAINING_TOLERANCE, TrainingCheck};
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
    /// Of losses and of trained numbers.
    training_tolerance: (f64, f64),
    devices: Vec<DeviceCheck>,
}

#[derive(Serialize)]
struct DeviceCheck {
    device: String,
    name: String,
    sound: bool,
    kernels: Vec<KernelCheck>,
    training: Option<TrainingCheck>,
    failure: Option<String>,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let ids: Vec<String> = match &args.device {
        Some(id) => vec![id.clone()],
        None => pipeline::list_devices().into_iter().map(|d| d.id).collect(),
    };
    let mut devices = Vec::new();
    for id in ids {
        let opened = DeviceArg { device: id.clone(), dump_ir: None }.open();
        devices.push(match opened {
            Err(e) if args.device.is_some() => return Err(e),
            Err(e) => DeviceCheck {
                device: id,
                name: String::new(),
                sound: false,
                kernels: vec![],
                training: None,
                failure: Some(e.to_string()),
            },
            Ok(mut device) => {
                let kernels = pipeline::self_check(device.as_mut());
                let (training, failure) = match pipeline::training_check(device.as_mut()) {
                    Ok(training) => (Some(training), None),
                    Err(e) => (None, Some(format!("training failed: {e}"))),
                };
                let trains = training.as_ref().is_some_and(|t| t.failure.is_none());
                let sound = trains && kernels.iter().all(|k| k.failure.is_none());
                DeviceCheck { device: id, name: device.name(), sound, kernels, training, failure }
            }
        });
    }
    let sound = devices.iter().all(|d| d.sound);
    let result = Result_ { tolerance: KERNEL_TOLERANCE, training_tolerance: TRAINING_TOLERANCE, devices };
    printer.result(&result, || text(&result));
    Ok(if sound { Outcome::Done } else { Outcome::Failed })
}

fn text(r: &Result_) -> String {
    let rows = r.devices.iter().map(|d| {
        let worst = d.kernels.iter().map(|k| k.worst).fold(0.0, f64::max);
        let sound = d.kernels.iter().filter(|k| k.failure.is_none()).count();
        let trained = d.training.as_ref().map_or("failed".into(), |t| match t.failure {
            None => format!("agrees to {:.1e}", t.worst_loss),
            Some(_) => format!("differs by {:.1e}", t.worst_loss),
        });
        let kernels = format!("{sound} of {}", d.kernels.len());
        vec![d.device.clone(), d.name.clone(), kernels, format!("{worst:.1e}"), trained]
    });
    let heads = ["device", "name", "sound kernels", "largest difference", "three steps of training"];
    let mut out = table(&heads, rows.collect());
    for d in &r.devices {
        let failed = d.kernels.iter().filter_map(|k| k.failure.as_ref().map(|f| format!("{}: {f}", k.primitive)));
        let training = d.training.as_ref().and_then(|t| t.failure.clone());
        for line in d.failure.iter().cloned().chain(failed).chain(training) {
            out += &format!("\n{}: {line}", d.device);
        }
    }
    out
}
