//! What the program says of itself: `--help` of every subcommand, so that a change of a flag, default or sentence is seen.

use crate::cli::done;
use std::path::Path;

/// Names of the subcommands, as `--help` lists them.
fn subcommands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    // A long description goes on further to the right.
    let rows = list.filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    rows.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(String::from).collect()
}

#[test]
fn help_of_every_subcommand() {
    let here = Path::new(".");
    let all = done(here, &["--help"]).out;
    insta::assert_snapshot!("help", all);
    let names = subcommands(&all);
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        insta::assert_snapshot!(format!("help_{name}"), done(here, &[&name, "--help"]).out);
    }
}
