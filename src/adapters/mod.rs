//! Adapters: what is trained beside a frozen linear node, and how it becomes plain weights again.
//!
//! An adapter is one [`Entry`] in one file, and a line in [`ENTRIES`]. The entry says everything that the rest of the program
//! asks: names, settings, tensors, nodes, residual paths, graph inputs and how it merges.

mod block_shortcut;
mod blocks;
pub(crate) mod chain;
mod config;
mod dora;
mod emission;
mod emitter;
mod entry;
mod fit;
mod ia3;
mod init;
mod input_shortcut;
mod loftq;
mod loha;
mod lokr;
mod lor2c;
mod lora;
mod loreft;
mod middle_shortcut;
mod miss;
mod moe_lora;
mod mora;
mod mtl_lora;
mod names;
mod norm;
mod oft;
mod petalface;
mod prompt;
mod propulsion;
mod residual;
mod sltrain;
mod values;
mod vera;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::Deref;
use std::sync::RwLock;

pub use crate::onnx::{AttrValue, ElementType, Role};
pub use blocks::Block;
pub use chain::Break;
pub use config::{Config, Target};
pub use emitter::Emitter;
pub use entry::{
    Drawing, Elements, Elsewhere, Entry, Fold, Folded, Folding, Form, GraphInput, Group, Join, Merge, Place, Setting,
    SettingKind, Spec, Start, Term, Whole,
};
pub use init::{Init, Loftq};
pub use residual::Residual;
pub use values::{Factors, Values};

pub(crate) use blocks::{Scene, emit, emit_again};
pub(crate) use config::{BASE_KEY, CONFIG_KEY, base_name};
pub(crate) use emission::{Constant, Emission, Emitted};
pub(crate) use prompt::IDS_KEY as PROMPT_IDS_KEY;

pub(crate) use entry::{ElsewhereFolding, Places, Rewrite, Rewrites};
pub(crate) use fit::{FitError, Made, OwnTargets, fit, own_targets};
pub(crate) use init::{INITS, normal};
pub(crate) use names::layers;
pub(crate) use residual::RESIDUALS;
pub(crate) use values::Tensors;

/// Every adapter.
static ENTRIES: &[&Entry] = &[
    &lora::ENTRY,
    &input_shortcut::ENTRY,
    &block_shortcut::ENTRY,
    &middle_shortcut::ENTRY,
    &dora::ENTRY,
    &loha::ENTRY,
    &lokr::ENTRY,
    &vera::ENTRY,
    &ia3::ENTRY,
    &miss::ENTRY,
    &oft::ENTRY,
    &norm::ENTRY,
    &propulsion::ENTRY,
    &mora::ENTRY,
    &mtl_lora::ENTRY,
    &moe_lora::ENTRY,
    &petalface::ENTRY,
    &sltrain::ENTRY,
    &loreft::ENTRY,
    &lor2c::ENTRY,
    &prompt::ENTRY,
];

/// The adapter that `inject` takes where nothing else is asked for.
pub fn standard() -> Structure {
    Structure(&block_shortcut::ENTRY)
}

/// Plain LoRA, the form that every approximate merge has.
pub fn lora() -> Structure {
    Structure(&lora::ENTRY)
}

/// Adapters that a user of the library has added.
static REGISTERED: RwLock<Vec<&'static Entry>> = RwLock::new(Vec::new());

/// Adds an adapter of the caller's to the table, so that files that carry it can be read, trained and merged.
///
/// # Panics
/// If another adapter has one of its names.
pub fn register(entry: &'static Entry) -> Structure {
    let mut registered = REGISTERED.write().expect("nothing panics while it holds the lock");
    let known = || ENTRIES.iter().copied().chain(registered.iter().copied());
    if !registered.iter().any(|e| std::ptr::eq(*e, entry)) {
        let taken = known().find(|e| e.names().any(|n| entry.names().any(|m| m == n)));
        assert!(taken.is_none(), "the adapter '{}' is in the table already", entry.name);
        registered.push(entry);
    }
    Structure(entry)
}

/// Every adapter, those that were registered last.
pub fn all() -> Vec<Structure> {
    let registered = REGISTERED.read().expect("nothing panics while it holds the lock");
    ENTRIES.iter().chain(registered.iter()).map(|e| Structure(e)).collect()
}

/// The adapter of this name or alias.
pub fn find(name: &str) -> Option<Structure> {
    all().into_iter().find(|s| s.names().any(|n| n == name))
}

/// An adapter of the table; two are equal if their names are.
#[derive(Clone, Copy)]
pub struct Structure(&'static Entry);

impl Structure {
    /// The line of the table.
    pub fn entry(self) -> &'static Entry {
        self.0
    }
}

impl Deref for Structure {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        self.0
    }
}

impl PartialEq for Structure {
    fn eq(&self, other: &Structure) -> bool {
        self.name == other.name
    }
}

impl Eq for Structure {}

impl fmt::Debug for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Structure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for Structure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Structure, D::Error> {
        let name = String::deserialize(deserializer)?;
        find(&name).ok_or_else(|| {
            let names: Vec<&str> = all().iter().map(|s| s.0.name).collect();
            serde::de::Error::custom(format!(
                "structure '{name}' is not known; the structures are {}",
                names.join(", ")
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_once() {
        let mut names: Vec<&str> = ENTRIES.iter().flat_map(|e| e.names()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|n| n[0] != n[1]), "{names:?}");
    }

    /// Names in files are read by suffix, so an entry must list all that it makes.
    #[test]
    fn entries_list_the_suffixes_of_their_tensors() {
        for structure in all() {
            let config = Config::sample(structure);
            for spec in config.specs(&config.targets[0]).expect("the sample's settings fit") {
                assert!(structure.suffixes.contains(&spec.suffix.as_str()), "{structure}: {}", spec.suffix);
            }
        }
    }
}
