//! Images: prepared as transformers' image processors prepare them, from class folders and from tables.

use crate::build::{F32, Net, spread, tensor};
use crate::cli::{cli, done, json};
use reslora_compile::internals::train::data::{self, Dataset, Feed, Options, Pixels, Source};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images").join(name)
}

/// A folder with one configuration of image processors in it.
fn folder(configuration: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let all: Value = serde_json::from_slice(&std::fs::read(fixture("configs.json")).unwrap()).unwrap();
    std::fs::write(dir.path().join("preprocessor_config.json"), all[configuration].to_string()).unwrap();
    dir
}

fn options(beside: &Path) -> Options {
    let pixels = Some(Pixels { name: "pixel_values".into(), channels_last: false });
    Options { beside: Some(beside.to_path_buf()), pixels, ..Options::default() }
}

fn read(path: &Path, options: &Options) -> Result<Dataset, String> {
    data::read(path, options).map_err(|e| e.to_string())
}

#[test]
fn pixels_are_those_of_the_image_processors() {
    let bytes = std::fs::read(fixture("expected.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let configurations: Value = serde_json::from_slice(&std::fs::read(fixture("configs.json")).unwrap()).unwrap();
    for configuration in configurations.as_object().unwrap().keys() {
        let dir = folder(configuration);
        let data = read(&fixture("photos"), &options(dir.path())).unwrap();
        let Source::Tensors { images: Some(images), examples, .. } = &data.source else { panic!("images") };
        assert_eq!(*examples, 5);
        for i in 0..*examples {
            let name = images.file(i).file_name().unwrap().to_str().unwrap();
            let want = expected.tensor(&format!("{configuration}/{name}")).unwrap();
            let values: Vec<f32> =
                want.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let got = images.tensor(&[i]).unwrap();
            assert_eq!(&got.shape()[1..], want.shape(), "{configuration} {name}");
            for (k, (a, b)) in got.as_f32().unwrap().iter().zip(&values).enumerate() {
                assert!(
                    (a - b).abs() <= 2e-6 * b.abs().max(1.0),
                    "{configuration} {name}: element {k} is {a}, not {b}"
                );
            }
        }
    }
}

#[test]
fn classes_are_folders_or_columns() {
    let dir = folder("vit");
    let d = dir.path();
    let labels = |data: &Dataset| data.tensor("labels").unwrap().as_i32().unwrap().to_vec();
    let by_folder = read(&fixture("photos"), &options(d)).unwrap();
    assert_eq!(labels(&by_folder), [0, 0, 1, 1, 2]);
    assert!(by_folder.notes.join(" ").contains("its classes are 0 cat, 1 dog, 2 emu"), "{:?}", by_folder.notes);
    // As the model calls them.
    let named = Options { label_names: ["emu", "dog", "cat"].map(String::from).to_vec(), ..options(d) };
    assert_eq!(labels(&read(&fixture("photos"), &named).unwrap()), [2, 2, 1, 1, 0]);
    let other = Options { label_names: ["emu", "dog"].map(String::from).to_vec(), ..options(d) };
    assert!(read(&fixture("photos"), &other).unwrap_err().contains("--label-names"));
    // A table, with paths from its own folder.
    std::fs::copy(fixture("photos/cat/a.png"), d.join("a.png")).unwrap();
    std::fs::copy(fixture("photos/emu/e.png"), d.join("e.png")).unwrap();
    std::fs::write(d.join("t.csv"), "file,kind\ne.png,emu\na.png,cat\ne.png,emu\n").unwrap();
    let columns = [("image", "file"), ("label", "kind")].map(|(a, b)| (a.to_string(), b.to_string())).to_vec();
    let table = read(&d.join("t.csv"), &Options { columns, ..options(d) }).unwrap();
    assert_eq!(labels(&table), [1, 0, 1]);
    // Each part of a data set reads its own images.
    let feed = Feed { inputs: vec![], ..Feed::default() };
    let part = table.subset(1..3);
    assert_eq!(part.len(), 2);
    let Source::Tensors { images: Some(images), .. } = &part.source else { panic!("images") };
    assert_eq!(images.file(0), d.join("a.png"));
    assert_eq!(part.batch(&feed, &[0, 1]).unwrap().labels.unwrap().as_i32().unwrap(), [0, 1]);
    std::fs::write(d.join("bad.csv"), "image,label\na.png,0\nnone.png,1\n").unwrap();
    let error = read(&d.join("bad.csv"), &options(d)).unwrap_err();
    assert!(error.contains("line 3") && error.contains("there is no file"), "{error}");
    let skips = Options { skip_bad_rows: 1, ..options(d) };
    assert_eq!(read(&d.join("bad.csv"), &skips).unwrap().len(), 1);
    std::fs::write(d.join("unnamed.csv"), "picture,label\na.png,0\n").unwrap();
    assert!(read(&d.join("unnamed.csv"), &options(d)).unwrap_err().contains("--columns image=PATH_COLUMN"));
}

#[test]
fn what_is_not_done_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    assert!(read(&fixture("photos"), &options(d)).unwrap_err().contains("preprocessor_config.json beside the model"));
    for (config, mention) in [
        (r#"{"image_processor_type": "DetrImageProcessor", "size": 5}"#, "DetrImageProcessor is not known"),
        (r#"{"size": {"height": 4, "width": 4}, "do_pad": true}"#, "do_pad is not done"),
        (r#"{"size": {"shortest_edge": 4, "longest_edge": 9}}"#, "is not done here"),
        (r#"{"size": {"height": 4, "width": 4}, "image_mean": [0.5]}"#, "not three numbers"),
        (r#"{"size": {"height": 4, "width": 4}, "resample": 9}"#, "resample 9 is no filter"),
    ] {
        std::fs::write(d.join("preprocessor_config.json"), config).unwrap();
        let error = read(&fixture("photos"), &options(d)).unwrap_err();
        assert!(error.contains(mention), "'{error}', not '{mention}'");
    }
    // A file that is no image is found when it is read.
    std::fs::write(d.join("preprocessor_config.json"), r#"{"size": {"height": 4, "width": 4}}"#).unwrap();
    std::fs::create_dir_all(d.join("p/a")).unwrap();
    std::fs::write(d.join("p/a/x.png"), "no image").unwrap();
    let data = read(&d.join("p"), &options(d)).unwrap();
    let Source::Tensors { images: Some(images), .. } = &data.source else { panic!("images") };
    assert!(images.tensor(&[0]).unwrap_err().to_string().contains("x.png"));
}

/// A model of one linear layer over the pixels of images of 20 x 20.
fn classifier(path: &Path) {
    let weights: Vec<f32> = spread(1200 * 3, 7).iter().map(|x| 0.02 * x).collect();
    let net = Net::new(17)
        .input("pixel_values", F32, &["batch", "3", "20", "20"])
        .initializer(tensor("head.weight", &[1200, 3], &weights))
        .node("flatten", "Flatten", &["pixel_values"], &["flat"], &[])
        .node("head", "MatMul", &["flat", "head.weight"], &["logits"], &[])
        .output("logits", F32, &["batch", "3"]);
    net.write(path);
}

#[test]
fn a_classifier_of_images_is_trained_from_class_folders() {
    let dir = folder("vit");
    let d = dir.path();
    classifier(&d.join("model.onnx"));
    done(d, &["inject", "model.onnx", "--target", "head", "--rank", "2", "-o", "t.onnx"]);
    let photos = fixture("photos");
    let photos = photos.to_str().unwrap();
    let got = json(
        d,
        &["train", "t.onnx", "--data", photos, "--max-steps", "80", "--lr", "1e-2", "-o", "run", "--device", "cpu"],
    );
    assert!(got["loss"].as_f64().unwrap() < 0.5, "{got}");
    let eval = json(d, &["eval", "t.onnx", "--adapter", "run", "--data", photos, "--device", "cpu"]);
    assert_eq!((&eval["accuracy"], &eval["examples"]), (&Value::from(1.0), &Value::from(5)));
    let shown = done(d, &["data", "t.onnx", "--data", photos]);
    assert!(shown.out.contains("pixel_values") && shown.out.contains("f32[3,3,20,20]"), "{}", shown.out);
    let ran = cli(d, &["eval", "t.onnx", "--data", d.join("none").to_str().unwrap()]);
    assert_eq!(ran.code, 1);
}
