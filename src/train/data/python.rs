//! The parts of Python that chat templates rely on: printing of values, `tojson`, string methods, and type tests.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::fmt::Write;

/// Makes an environment behave as Python's Jinja2 does for transformers.
pub fn install(env: &mut Environment<'static>) {
    env.set_formatter(|out, _, value| {
        let mut text = String::new();
        print(value, false, &mut text);
        out.write_str(&text).map_err(Error::from)
    });
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", to_json);
    env.add_filter("string", |value: &Value| {
        let mut text = String::new();
        print(value, false, &mut text);
        text
    });
    env.add_filter("wordcount", |text: String| text.split_whitespace().count());
    env.add_filter("int", |value: &Value, default: Option<i64>| match value.as_str() {
        Some(text) => {
            let text = text.trim().replace('_', "");
            let whole = text.parse::<i64>().ok();
            whole.or_else(|| text.parse::<f64>().ok().map(|x| x as i64)).unwrap_or(default.unwrap_or(0))
        }
        None if value.kind() == ValueKind::Bool => value.is_true() as i64,
        None => value.as_i64().or_else(|| f64::try_from(value.clone()).ok().map(|x| x as i64)).unwrap_or(0),
    });
    env.add_filter("float", |value: &Value, default: Option<f64>| match value.as_str() {
        Some(text) => text.trim().parse::<f64>().unwrap_or(default.unwrap_or(0.0)),
        None => f64::try_from(value.clone()).unwrap_or(default.unwrap_or(0.0)),
    });
    env.add_test("iterable", |v: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(v.kind(), Undefined | String | Seq | Map | Iterable)
    });
    env.add_test("sequence", |v: &Value| {
        use ValueKind::{Map, Seq, String, Undefined};
        matches!(v.kind(), Undefined | String | Seq | Map)
    });
}

/// A value as `str` prints it, or as `repr` does.
fn print(value: &Value, repr: bool, out: &mut String) {
    let list = |open: &str, close: &str, out: &mut String| {
        out.push_str(open);
        for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            print(&item, true, out);
        }
        if value.is_tuple() && value.len() == Some(1) {
            out.push(',');
        }
        out.push_str(close);
    };
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String if repr => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable if value.is_tuple() => list("(", ")", out),
        ValueKind::Seq | ValueKind::Iterable => list("[", "]", out),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                print(&key, true, out);
                out.push_str(": ");
                print(&value.get_item(&key).unwrap_or_default(), true, out);
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

fn number(value: &Value, out: &mut String) {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x, out),
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// A float as Python writes it: the shortest digits that read back, with an exponent where it is small or large.
fn float(x: f64, out: &mut String) {
    if !x.is_finite() {
        out.push_str(if x.is_nan() { "nan" } else { ["inf", "-inf"][(x < 0.0) as usize] });
        return;
    }
    let short = format!("{x:e}");
    let (digits, exponent) = short.split_once('e').unwrap_or((&short, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let _ = match (-4..16).contains(&exponent) {
        true if x.fract() == 0.0 => write!(out, "{x:.1}"),
        true => write!(out, "{x}"),
        false => write!(out, "{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    };
}

/// A text in quotes, as `repr` writes it.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let _ = match c {
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\\' => write!(out, "\\\\"),
            c if c == quote => write!(out, "\\{c}"),
            c if (c as u32) < 0x20 || (0x7f..=0xa0).contains(&(c as u32)) || c == '\u{ad}' => {
                write!(out, "\\x{:02x}", c as u32)
            }
            c if c.is_whitespace() && c != ' ' || matches!(c as u32, 0x200b..=0x200f | 0x2028..=0x202e | 0xfeff) => {
                write!(out, "\\u{:04x}", c as u32)
            }
            c => write!(out, "{c}"),
        };
    }
    out.push(quote);
}

/// How `json.dumps` lays a value out.
struct Layout {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
}

/// `json.dumps`, with the arguments that transformers' filter takes.
fn to_json(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (args, kwargs): (&[Value], Kwargs) = from_args(&args)?;
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let mut given: Vec<Option<Value>> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let named: Option<Value> = kwargs.get(name)?;
        given.push(args.get(i).cloned().or(named));
    }
    kwargs.assert_all_used()?;
    let truth = |v: &Option<Value>| v.as_ref().is_some_and(Value::is_true);
    let indent = given[1].as_ref().filter(|v| !v.is_none()).map(|v| match v.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(v.as_i64().unwrap_or(0).max(0) as usize),
    });
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string());
    if let Some(pair) = given[2].as_ref().filter(|v| !v.is_none()) {
        (item, key) = (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string());
    }
    let layout = Layout { ascii: truth(&given[0]), indent, item, key, sorted: truth(&given[3]) };
    let mut out = String::new();
    dump(value, &layout, 0, &mut out)?;
    Ok(Value::from(out))
}

fn dump(value: &Value, layout: &Layout, depth: usize, out: &mut String) -> Result<(), Error> {
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let mut text = String::new();
            number(value, &mut text);
            out.push_str(match text.as_str() {
                "nan" => "NaN",
                "inf" => "Infinity",
                "-inf" => "-Infinity",
                text => text,
            });
        }
        ValueKind::String => json_text(value.as_str().unwrap_or_default(), layout.ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { &layout.item } else { "" });
                line(depth + 1, out);
                dump(item, layout, depth + 1, out)?;
            }
            if !items.is_empty() {
                line(depth, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sorted {
                keys.sort();
            }
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                out.push_str(if i > 0 { &layout.item } else { "" });
                line(depth + 1, out);
                let mut name = String::new();
                match key.as_str() {
                    Some(text) => name.push_str(text),
                    None => dump(key, layout, 0, &mut name)?,
                }
                json_text(&name, layout.ascii, out);
                out.push_str(&layout.key);
                dump(&value.get_item(key)?, layout, depth + 1, out)?;
            }
            if !keys.is_empty() {
                line(depth, out);
            }
            out.push('}');
        }
        kind => {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} has no form in JSON")));
        }
    }
    Ok(())
}

fn json_text(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        let _ = match c {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\u{8}' => write!(out, "\\b"),
            '\u{c}' => write!(out, "\\f"),
            c if (c as u32) < 0x20 => write!(out, "\\u{:04x}", c as u32),
            c if ascii && (!c.is_ascii() || c == '\u{7f}') => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().try_for_each(|u| write!(out, "\\u{u:04x}"))
            }
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
}

/// Methods of Python's texts and dicts that templates call.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args);
    };
    let blank = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    Ok(match name {
        "removeprefix" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(what).unwrap_or(text))
        }
        "removesuffix" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(what).unwrap_or(text))
        }
        "strip" if args.is_empty() => Value::from(text.trim_matches(blank)),
        "lstrip" if args.is_empty() => Value::from(text.trim_start_matches(blank)),
        "rstrip" if args.is_empty() => Value::from(text.trim_end_matches(blank)),
        "partition" | "rpartition" => {
            let (what,): (&str,) = from_args(args)?;
            let found = if name == "partition" { text.split_once(what) } else { text.rsplit_once(what) };
            let parts = match (found, name) {
                (Some((a, b)), _) => [a, what, b],
                (None, "partition") => [text, "", ""],
                (None, _) => ["", "", text],
            };
            Value::from(Tuple::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()))
        }
        "index" => {
            let (what,): (&str,) = from_args(args)?;
            let at = text.find(what).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(text.starts_with(['-', '+']) as usize);
            let zeros = width.saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(zeros)))
        }
        "rsplit" => {
            let (what, most): (&str, Option<i64>) = from_args(args)?;
            let most = most.and_then(|n| usize::try_from(n).ok()).map_or(usize::MAX, |n| n.saturating_add(1));
            let mut parts: Vec<&str> = text.rsplitn(most, what).collect();
            parts.reverse();
            parts.into_iter().map(Value::from).collect()
        }
        _ => return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    })
}
