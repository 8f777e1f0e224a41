//! Free memory of the host, checked before large allocations: exceeding it would kill the process instead of failing.

use super::DeviceError;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Bytes that can still be had, within the limits of a container; `None` where the system does not say.
fn left() -> Option<u64> {
    let memory = MemoryRefreshKind::nothing().with_ram().with_swap();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory));
    let here = system.available_memory().saturating_add(system.free_swap());
    let container = system.cgroup_limits().filter(|c| c.total_memory < system.total_memory()).map(|c| c.free_memory);
    Some(here.min(container.unwrap_or(u64::MAX))).filter(|&bytes| bytes > 0)
}

/// Allocations below this are not looked at.
const SMALL: usize = 64 << 20;

/// An error where the host has no room for as many more bytes on a device.
pub fn check(bytes: usize, what: &str, device: impl FnOnce() -> String) -> Result<(), DeviceError> {
    if bytes < SMALL || left().is_none_or(|left| (bytes as u64) < left) {
        return Ok(());
    }
    Err(DeviceError::Memory { device: device(), bytes, what: what.to_string() })
}
