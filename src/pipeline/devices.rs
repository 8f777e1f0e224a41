//! Choosing a device.

use super::Error;
use crate::device::{self, Device, DeviceError};

/// What `--device` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A hardware GPU if there is one, else the cpu device.
    Auto,
    Cpu,
    /// The n-th adapter, or the best one.
    Gpu(Option<usize>),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<DeviceChoice, String> {
        match s {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "gpu" => Ok(DeviceChoice::Gpu(None)),
            _ => match s.strip_prefix("gpu:").and_then(|n| n.parse().ok()) {
                Some(n) => Ok(DeviceChoice::Gpu(Some(n))),
                None => Err("expected auto, gpu, gpu:N or cpu".into()),
            },
        }
    }
}

/// A device that could be opened.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    /// What `--device` calls it.
    pub id: String,
    pub name: String,
    pub kind: String,
    pub backend: String,
    pub driver: String,
    /// MiB that one value may take.
    pub value_mib: u64,
}

pub fn list_devices() -> Vec<DeviceInfo> {
    let cpu = DeviceInfo {
        id: "cpu".into(),
        name: device::Cpu::new().name(),
        kind: "cpu".into(),
        backend: "host".into(),
        driver: String::new(),
        value_mib: u64::MAX >> 20,
    };
    vec![cpu]
}

pub fn open_device(choice: DeviceChoice) -> Result<Box<dyn Device>, Error> {
    match choice {
        DeviceChoice::Cpu | DeviceChoice::Auto => Ok(Box::new(device::Cpu::new())),
        DeviceChoice::Gpu(_) => Err(DeviceError::NoDevice { wanted: "gpu".into(), hint: "--device cpu".into() }.into()),
    }
}
