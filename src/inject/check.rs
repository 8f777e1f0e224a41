//! What of the options cannot be: numbers out of range, settings that the structure does not have.

use super::error::InjectError;
use super::options::Options;
use crate::adapters::{Config, Init, Residual, SettingKind};
use crate::onnx::Model;

pub(super) fn check(base: &Model, o: &Options) -> Result<(), InjectError> {
    let bad = |why: String| Err(InjectError::Option(why));
    if o.rank == 0 {
        return bad("--rank must be at least 1".into());
    }
    if !(o.alpha.is_finite() && o.alpha > 0.0) {
        return bad(format!("--alpha {} must be a positive number", o.alpha));
    }
    if !(0.0..1.0).contains(&o.dropout) {
        return bad(format!("--dropout {} must be at least 0 and below 1", o.dropout));
    }
    if o.pre_num < -1 {
        return bad(format!("--pre-num {} must be -1 (all earlier blocks) or more", o.pre_num));
    }
    let structure = o.structure;
    if o.residual != Residual::None && !structure.residuals.contains(&o.residual) {
        let paths: Vec<String> = structure.residuals.iter().map(ToString::to_string).collect();
        let takes = if paths.is_empty() { "none".into() } else { paths.join(", ") };
        return bad(format!("--residual {} does not go with {structure}\nhint: it takes {takes}", o.residual));
    }
    if o.dropout > 0.0 && !structure.dropout {
        return bad(format!("--dropout does not go with {structure}, which has no place for it"));
    }
    if !structure.rank && !o.rank_pattern.is_empty() || !structure.alpha && !o.alpha_pattern.is_empty() {
        return bad(format!("--rank-pattern and --alpha-pattern do not go with {structure}, which has no such number"));
    }
    if o.rank_pattern.iter().any(|p| p.1 == 0) {
        return bad("--rank-pattern must give a rank of at least 1".into());
    }
    if let Some((_, a)) = o.alpha_pattern.iter().find(|p| !(p.1.is_finite() && p.1 > 0.0)) {
        return bad(format!("--alpha-pattern {a} must be a positive number"));
    }
    if o.freeze_a && !structure.suffixes.contains(&"lora_A.weight") {
        return bad(format!("--freeze-a does not go with {structure}, which has no factor A"));
    }
    if o.init != Init::Default && !structure.suffixes.contains(&"lora_A0.weight") {
        return bad(format!(
            "--init {} does not go with {structure}\nhint: it takes lora and its residual structures",
            o.init
        ));
    }
    if !matches!(o.loftq.bits, 4 | 8) {
        return bad(format!("--loftq-bits {} must be 4 or 8", o.loftq.bits));
    }
    if o.loftq.iterations == 0 {
        return bad("--loftq-iter must be at least 1".into());
    }
    check_settings(o)?;
    let opset = base.opset("");
    if opset < 11 && o.structure.form.reads_bias() {
        return Err(InjectError::Opset { opset, what: format!("the nodes of {}", o.structure) });
    }
    if o.dropout > 0.0 && opset < 12 {
        return Err(InjectError::Opset { opset, what: "dropout that is active in training only".into() });
    }
    Ok(())
}

/// Checks what the start of these targets reads besides the model.
pub(super) fn check_start(config: &Config, o: &Options) -> Result<(), InjectError> {
    let bad = |why: String| Err(InjectError::Option(why));
    if o.adapter.is_some() {
        return Ok(());
    }
    if o.init == Init::Eva && o.directions.is_empty() {
        let hint = "hint: give --init-data FILE with examples";
        return bad(format!("--init eva reads what the model's layers read, so it needs data\n{hint}"));
    }
    if o.init != Init::Loftq {
        return Ok(());
    }
    let held = |quantised: bool| config.targets.iter().find(|t| t.quantised == quantised);
    if let Some(t) = held(true).filter(|_| o.loftq.iterations > 1) {
        let why = "which stays, so there is nothing to find in turn";
        return bad(format!(
            "--loftq-iter {}: the file holds the weight of '{}' quantised, {why}",
            o.loftq.iterations, t.path
        ));
    }
    if let Some(t) = config.targets.iter().find(|t| t.quantised && !o.originals.contains_key(&t.path)) {
        let hint = "hint: give the model from before it was quantised with --init-data MODEL.onnx";
        let why = "so --init loftq needs the original weight";
        return bad(format!("the file holds the weight of '{}' quantised, {why}\n{hint}", t.path));
    }
    Ok(())
}

/// Checks the settings of a structure's own.
fn check_settings(o: &Options) -> Result<(), InjectError> {
    let bad = |why: String| Err(InjectError::Option(why));
    for (name, value) in &o.settings {
        let Some(setting) = o.structure.settings.iter().find(|s| s.name == name) else {
            let own: Vec<String> = o.structure.settings.iter().map(|s| format!("--{}", s.name)).collect();
            let own = if own.is_empty() {
                "it has no settings of its own".into()
            } else {
                format!("it takes {}", own.join(", "))
            };
            return bad(format!("--{name} means nothing to {}\nhint: {own}", o.structure));
        };
        match setting.kind {
            SettingKind::Count { least, .. } if value.as_i64().is_none_or(|n| n < least) => {
                return bad(format!("--{name} {value} must be a whole number, at least {least}"));
            }
            SettingKind::Number { .. } if value.as_f64().is_none_or(|x| !x.is_finite()) => {
                return bad(format!("--{name} {value} must be a number"));
            }
            SettingKind::Text { .. } | SettingKind::Tokens if !value.is_string() => {
                return bad(format!("--{name} {value} must be text"));
            }
            SettingKind::Count { .. } | SettingKind::Number { .. } | SettingKind::Text { .. } | SettingKind::Tokens => {
            }
        }
    }
    Ok(())
}
