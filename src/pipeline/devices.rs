//! Lists and opens devices.

use super::Error;
use crate::device::{self, Device, GpuOptions};
use crate::ir::FloatType;
use std::path::PathBuf;

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
    /// The adapter's or the CPU's name.
    pub name: String,
    /// What it is, such as `discrete GPU`.
    pub kind: String,
    /// Vulkan, Metal or DirectX 12; empty for the CPU.
    pub backend: String,
    /// The driver and its version; empty for the CPU.
    pub driver: String,
    /// Whether a GPU is emulated on the CPU.
    pub software: bool,
    /// MiB that one binding may have; `None` where there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_mib: Option<u64>,
}

/// Every device, the cpu device first.
pub fn list_devices() -> Vec<DeviceInfo> {
    let cpu = DeviceInfo {
        id: "cpu".into(),
        name: device::Cpu::new(None).name(),
        kind: "processor".into(),
        backend: String::new(),
        driver: String::new(),
        software: false,
        value_mib: None,
    };
    let gpu = |(i, g): (usize, device::GpuInfo)| DeviceInfo {
        id: format!("gpu:{i}"),
        name: g.name,
        kind: if g.software { "software adapter".into() } else { g.kind },
        backend: g.backend,
        driver: g.driver,
        software: g.software,
        value_mib: Some(g.binding >> 20),
    };
    [cpu].into_iter().chain(device::list_gpus().into_iter().enumerate().map(gpu)).collect()
}

/// The environment variable that limits the MiB of one weight on a device, to try what larger models meet on smaller
/// devices.
pub const MAX_WEIGHT: &str = "RESLORA_MAX_WEIGHT_MIB";

/// The environment variable that turns races between kernels on or off (1 or 0), whatever the adapter is. They are on for
/// hardware; a software adapter that races is given the kernels for hardware.
pub const TUNE: &str = "RESLORA_TUNE";

/// The environment variable that keeps an adapter to the features and limits that every WebGPU adapter has (1).
pub const LEAST: &str = "RESLORA_LEAST";

/// The environment variable that names the folder where devices remember winners and compiled pipelines; empty turns it off.
pub const CACHE_DIR: &str = "RESLORA_CACHE_DIR";

/// The environment variable that keeps the cpu device's products in f32 (0), whatever units for bf16 the processor has.
pub const BF16: &str = "RESLORA_BF16";

/// In which types a device keeps and multiplies numbers; f32 by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The type of frozen weights that products and lookups alone read.
    pub weights: FloatType,
    /// Products of operands of 16 bits are to come, for which the device may have units of their own.
    pub mixed: bool,
}

impl Numbers {
    /// By the names that `--precision` and `--weights` have for them.
    pub fn named(precision: &str, weights: &str) -> Numbers {
        Numbers { weights: FloatType::parse(weights).unwrap_or_default(), mixed: precision == "mixed" }
    }
}

/// Opens a device.
pub fn open_device(choice: DeviceChoice, numbers: Numbers) -> Result<Box<dyn Device>, Error> {
    let max_weight = match std::env::var(MAX_WEIGHT) {
        Ok(text) => {
            let mib: u64 =
                text.parse().map_err(|_| Error::Usage(format!("{MAX_WEIGHT}={text} is no number of MiB")))?;
            Some(mib << 20)
        }
        Err(_) => None,
    };
    let tune = match std::env::var(TUNE).as_deref() {
        Ok("1") => Some(true),
        Ok("0") => Some(false),
        Ok(text) => return Err(Error::Usage(format!("{TUNE}={text} is neither 0 nor 1"))),
        Err(_) => None,
    };
    let least = std::env::var(LEAST).is_ok_and(|v| v == "1");
    let cache = match std::env::var_os(CACHE_DIR) {
        Some(folder) => Some(PathBuf::from(folder)).filter(|f| !f.as_os_str().is_empty()),
        None => device::platform_folder(),
    };
    let choice = match choice {
        DeviceChoice::Auto => {
            let hardware = device::list_gpus().iter().position(|g| !g.software);
            hardware.map_or(DeviceChoice::Cpu, |i| DeviceChoice::Gpu(Some(i)))
        }
        other => other,
    };
    Ok(match choice {
        DeviceChoice::Gpu(_) if numbers.weights == FloatType::Bf16 => {
            let why = "GPUs keep frozen weights as f32 or f16\nhint: --weights f16, or --device cpu";
            return Err(Error::Usage(format!("--weights bf16: {why}")));
        }
        DeviceChoice::Gpu(index) => {
            let options = GpuOptions {
                max_weight,
                tune,
                cache,
                half_weights: numbers.weights == FloatType::F16,
                kernel: None,
                mixed: numbers.mixed,
                least,
            };
            Box::new(device::Gpu::open_with(index, &options)?)
        }
        _ => {
            let cpu = device::Cpu::new(max_weight).with_weights(numbers.weights);
            let idle = std::env::var(BF16).is_ok_and(|v| v == "0");
            Box::new(if idle { cpu.without_units() } else { cpu })
        }
    })
}
