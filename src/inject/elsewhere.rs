//! Places other than linear nodes: which of them are adapted.

use super::error::{InjectError, either, is_list};
use super::options::{Options, Selector};
use crate::adapters::{Elsewhere, Places, Target};
use crate::onnx::{self, Model};

/// Every place that the structure can stand at.
pub(super) fn places(
    base: &Model,
    options: &Options,
    elsewhere: &Elsewhere,
    shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<Vec<Target>, InjectError> {
    let found = (elsewhere.places)(&Places { model: base, shape_of }).map_err(InjectError::Option)?;
    match found.is_empty() {
        true => Err(InjectError::NoPlace { what: elsewhere.what, structure: options.structure }),
        false => Ok(found),
    }
}

/// The targets that the chosen ones make: those that `--target` names, else those of the adapter, else all.
pub(super) fn choose(
    options: &Options,
    elsewhere: &Elsewhere,
    places: Vec<Target>,
    own: Option<&[String]>,
) -> Result<Vec<Target>, InjectError> {
    let mut keep = vec![options.targets.is_empty(); places.len()];
    for selector in &options.targets {
        let re = match selector {
            Selector::Path(re) => re,
            Selector::Role(role) => {
                let (structure, what) = (options.structure, elsewhere.what);
                let why = format!("--target role:{role} names linear nodes, and {structure} stands at a {what}");
                return Err(InjectError::Option(format!(
                    "{why}\nhint: give a regular expression over its module path"
                )));
            }
        };
        let mut hit = false;
        for (k, t) in keep.iter_mut().zip(&places).filter(|(_, t)| re.is_match(&t.path)) {
            (*k, hit) = (true, t.in_features > 0);
        }
        if !hit {
            let paths = || places.iter().map(|t| t.path.as_str());
            let hint = either(re.as_str(), is_list(re, paths()));
            let nearest = onnx::nearest(re.as_str(), paths(), 8).into_iter().map(String::from).collect();
            let (pattern, what) = (re.as_str().to_string(), elsewhere.what);
            return Err(InjectError::NoMatchElsewhere { pattern, what, count: places.len(), hint, nearest });
        }
    }
    for (k, t) in keep.iter_mut().zip(&places) {
        *k &= !options.exclude.iter().any(|re| re.is_match(&t.path));
    }
    let chosen = places.into_iter().zip(keep).filter(|p| p.1).map(|p| p.0).collect();
    let made = (elsewhere.targets)(&options.config(vec![]), chosen).map_err(InjectError::Option)?;
    // Those of the adapter, unless it holds nothing that is one target's own.
    let own = own.filter(|o| options.targets.is_empty() && !o.is_empty());
    let made: Vec<Target> = made.into_iter().filter(|t| own.is_none_or(|o| o.contains(&t.path))).collect();
    if made.is_empty() { Err(InjectError::AllExcluded) } else { Ok(made) }
}
