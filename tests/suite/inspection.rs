//! What is known of a model before anything is allocated: paths, roles, chains, and the memory a step will need.

use crate::oracle;
use reslora_compile::internals::pipeline;

#[test]
fn linear_nodes_are_found_with_path_role_and_chain() {
    let mut shown = String::new();
    for case in oracle::fixtures() {
        let model = pipeline::read(&case.dir.join("model.onnx")).unwrap();
        let options = case.options("init.safetensors");
        let limits = oracle::cpu().limits();
        let found = pipeline::inspect(&model, &options, 2, 16, limits).unwrap();
        shown += &format!("# {}\n", case.name());
        for f in &found.found {
            let (role, target) = (f.role.map_or("-".into(), |r| r.to_string()), if f.target { "*" } else { " " });
            let (l, chain) = (&f.linear, &f.chain);
            shown += &format!("{target} {} | {role} | {} x {} | {chain}\n", l.path, l.out_features, l.in_features);
        }
        assert!(found.unsupported.is_empty() && found.unreached.is_empty(), "{}: {:?}", case.name(), found.unreached);
        // Arenas can only lose to the bound by holes between values.
        let m = found.memory.expect("memory of a step");
        assert!(m.lower_bound <= m.arenas, "{}: {m:?}", case.name());
        assert!(m.arenas as f64 <= 1.15 * m.lower_bound as f64, "{}: {m:?}", case.name());
    }
    insta::assert_snapshot!(shown);
}
