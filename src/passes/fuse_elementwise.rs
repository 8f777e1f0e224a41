//! Joins elementwise operations over one shape into single passes over memory.
//!
//! A group runs where its last member stands. A producer joins the group of a consumer if they have the same shape and
//! every other reader of the producer stands in the group or after it, so that nothing is read before it is computed. A
//! member that is read outside becomes one of the group's outputs.

use super::rewrite::Rewriter;
use crate::ir::{Arg, BuildError, Def, Graph, Instr, Node, Program, Type, Value};
use crate::ops::elementwise::program_attr;
use crate::ops::{self, Gpu};
use std::collections::HashMap;

/// Instructions of one group, which bounds registers.
const MAX_INSTRS: usize = 48;

/// Fuses; a group reads and writes at most so many buffers.
pub fn fuse_elementwise(graph: &Graph, buffers: usize) -> Result<Graph, BuildError> {
    let groups = group(graph, buffers);
    let mut r = Rewriter::new(graph);
    let consumers = graph.consumers();
    for (i, node) in graph.nodes.iter().enumerate() {
        let members = &groups.members[groups.of[i]];
        match members.as_slice() {
            [_] => r.copy(node),
            _ if members.last() == Some(&i) => emit(&mut r, graph, &consumers, members),
            _ => {}
        }
    }
    Ok(r.finish())
}

struct Groups {
    /// The group of each node.
    of: Vec<usize>,
    /// The nodes of each group, in order.
    members: Vec<Vec<usize>>,
}

fn elementwise(node: &Node) -> bool {
    ops::find(&node.op).is_some_and(|p| matches!(p.gpu, Gpu::Elementwise(_)))
}

fn group(graph: &Graph, buffers: usize) -> Groups {
    let n = graph.nodes.len();
    let mut groups = Groups { of: (0..n).collect(), members: (0..n).map(|i| vec![i]).collect() };
    let consumers = graph.consumers();
    let kept: Vec<bool> = {
        let mut kept = vec![false; graph.values.len()];
        graph.outputs.iter().for_each(|o| kept[o.value.index()] = true);
        kept
    };
    for i in (0..n).rev() {
        if !elementwise(&graph.nodes[i]) {
            continue;
        }
        let y = graph.nodes[i].outputs[0];
        let readers = &consumers[y.index()];
        let mut targets: Vec<usize> = readers.iter().map(|&c| groups.of[c]).collect();
        targets.sort_unstable();
        targets.dedup();
        for target in targets {
            let members = &groups.members[target];
            let last = members[members.len() - 1];
            let fits = elementwise(&graph.nodes[last])
                && graph.shape(graph.nodes[last].outputs[0]) == graph.shape(y)
                && readers.iter().all(|&c| groups.of[c] == target || c > last);
            if fits {
                let mut joined = members.clone();
                joined.push(i);
                joined.sort_unstable();
                let (ins, outs) = boundary(graph, &consumers, &kept, &joined);
                if ins.len() + outs.len() <= buffers && joined.len() <= MAX_INSTRS {
                    groups.members[target] = joined;
                    groups.of[i] = target;
                    break;
                }
            }
        }
    }
    groups
}

/// What a group reads from outside, and which of its results are read outside.
fn boundary(graph: &Graph, consumers: &[Vec<usize>], kept: &[bool], members: &[usize]) -> (Vec<Value>, Vec<Value>) {
    let inside = |i: usize| members.binary_search(&i).is_ok();
    let (mut ins, mut outs) = (Vec::new(), Vec::new());
    for &m in members {
        for &v in &graph.nodes[m].inputs {
            let produced = matches!(graph.values[v.index()].def, Def::Node { node, .. } if inside(node));
            if !produced && !ins.contains(&v) {
                ins.push(v);
            }
        }
        let y = graph.nodes[m].outputs[0];
        if kept[y.index()] || consumers[y.index()].iter().any(|&c| !inside(c)) {
            outs.push(y);
        }
    }
    (ins, outs)
}

fn emit(r: &mut Rewriter, graph: &Graph, consumers: &[Vec<usize>], members: &[usize]) {
    let mut kept = vec![false; graph.values.len()];
    graph.outputs.iter().for_each(|o| kept[o.value.index()] = true);
    let (ins, outs) = boundary(graph, consumers, &kept, members);
    let mut program = Program::default();
    let mut at: HashMap<Value, usize> = HashMap::new();
    for &m in members {
        let node = &graph.nodes[m];
        let args = node
            .inputs
            .iter()
            .map(|v| match at.get(v) {
                Some(&k) => Arg::Instr(k),
                None => Arg::Input(ins.iter().position(|i| i == v).expect("read from outside the group")),
            })
            .collect();
        let y = node.outputs[0];
        at.insert(y, program.instrs.len());
        program.instrs.push(Instr { op: node.op.clone(), args, attrs: node.attrs.clone(), dtype: graph.ty(y).dtype });
    }
    program.outputs = outs.iter().map(|v| at[v]).collect();
    let inputs: Vec<Value> = ins.iter().map(|&v| r.get(v)).collect();
    let types: Vec<Type> = outs.iter().map(|&v| graph.ty(v).clone()).collect();
    r.b.set_origin(graph.nodes[*members.last().expect("a group has members")].origin.clone());
    let new = r.b.push("fused", &inputs, program_attr(program), types);
    outs.iter().zip(new).for_each(|(&o, n)| r.set(o, n));
}
