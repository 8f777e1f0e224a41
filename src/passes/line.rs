//! How the line of passes runs: each pass in its turn, the rules of the IR checked after it; or one pass alone, by its name.

use super::{DifferentiateError, Observer, Options, PassError, passes};
use super::{common_subexpressions::common_subexpressions, dead_code::dead_code};
use crate::ir::{BuildError, Graph, verify};
use crate::ops::RULES;

/// A graph on its way through the passes.
pub struct Line<'a> {
    pub graph: Graph,
    observer: Observer<'a>,
    which: Which<'a>,
}

/// Which passes run.
enum Which<'a> {
    /// Those whose condition holds.
    Asked,
    /// The first of this name, whatever its condition.
    Only(Option<&'a str>),
    /// None: their names are listed.
    Named(Vec<&'static str>),
}

impl<'a> Line<'a> {
    /// A graph in front of the first pass.
    pub fn new(graph: Graph, observer: Observer<'a>) -> Line<'a> {
        observer("input", &graph);
        Line { graph, observer, which: Which::Asked }
    }

    /// Runs a pass if its condition holds.
    pub fn run<E>(
        &mut self,
        condition: bool,
        name: &'static str,
        pass: impl FnOnce(&Graph) -> Result<Graph, E>,
    ) -> Result<(), PassError>
    where
        PassError: From<(&'static str, E)>,
    {
        let runs = match &mut self.which {
            Which::Asked => condition,
            Which::Only(only) => only.take_if(|only| *only == name).is_some(),
            Which::Named(names) => {
                names.push(name);
                false
            }
        };
        if !runs {
            return Ok(());
        }
        self.graph = pass(&self.graph).map_err(|error| PassError::from((name, error)))?;
        (self.observer)(name, &self.graph);
        check(&self.graph, name)
    }

    /// Drops repetitions, and what nothing reads any longer.
    pub fn clean(&mut self, condition: bool) -> Result<(), PassError> {
        self.run(condition, "common_subexpressions", common_subexpressions)?;
        self.run(condition, "dead_code", dead_code)
    }
}

impl From<(&'static str, BuildError)> for PassError {
    fn from((pass, error): (&'static str, BuildError)) -> PassError {
        PassError::Build { pass, error }
    }
}

impl From<(&'static str, DifferentiateError)> for PassError {
    fn from((_, error): (&'static str, DifferentiateError)) -> PassError {
        error.into()
    }
}

/// Checks the rules of the IR after a pass.
pub fn check(graph: &Graph, pass: &'static str) -> Result<(), PassError> {
    verify::verify(graph, &RULES).map_err(|violations| PassError::Broken { pass, violations })
}

/// The name of every pass, in the order of their first run.
pub fn names(options: &Options) -> Vec<&'static str> {
    let mut all = Line { graph: Graph::default(), observer: &mut |_, _| {}, which: Which::Named(vec![]) };
    passes(&mut all, options).expect("no pass runs");
    let Which::Named(mut names) = all.which else { unreachable!("it stays so") };
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    names
}

/// Runs one pass alone, as `options` set it up, whether they ask for it or not. An unknown name is a bug of the caller's.
pub fn run_pass(name: &str, graph: Graph, options: &Options) -> Result<Graph, PassError> {
    assert!(names(options).contains(&name), "there is no pass '{name}'");
    let mut line = Line { graph, observer: &mut |_, _| {}, which: Which::Only(Some(name)) };
    passes(&mut line, options)?;
    Ok(line.graph)
}
