//! How an image becomes a model's input: what `preprocessor_config.json` says, done as transformers' image processors do it.

use super::resample::{Filter, Rgb, resize};
use crate::train::data::special;
use serde_json::{Map, Value};
use std::path::Path;

/// The steps from an image to numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    resize: Option<(Size, Filter)>,
    /// Height and width to cut out of the middle.
    crop: Option<[usize; 2]>,
    /// What pixels are multiplied by.
    rescale: Option<f64>,
    /// Mean and standard deviation of each channel.
    normalize: Option<[[f64; 3]; 2]>,
    /// Blue comes first.
    bgr: bool,
}

/// What an image is resized to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    /// Height and width.
    Exact([usize; 2]),
    /// Its shorter edge, the other in proportion.
    Shortest(usize),
}

/// Image processors whose steps are those of [`Recipe::apply`], without `ImageProcessor`, `FeatureExtractor` and `Fast` at the end.
const KNOWN: &[&str] = &[
    "BeitCrop",
    "Beit",
    "BiT",
    "Bit",
    "CLIP",
    "ChineseCLIP",
    "ConvNext",
    "ConvNeXT",
    "DeiT",
    "Deit",
    "Dinov2",
    "EfficientFormer",
    "LeViT",
    "Levit",
    "MobileNetV1",
    "MobileNetV2",
    "MobileViT",
    "PoolFormer",
    "Poolformer",
    "Pvt",
    "SigLIP",
    "Siglip",
    "Swin",
    "ViT",
    "VideoMAE",
];

impl Recipe {
    /// Reads `preprocessor_config.json` in a folder; `None` where there is none.
    ///
    /// # Errors
    /// It asks for steps that are not done here.
    pub fn read(folder: &Path) -> Result<Option<Recipe>, String> {
        let Some(config) = special::object(&folder.join("preprocessor_config.json"))? else { return Ok(None) };
        Recipe::of(&config).map(Some).map_err(|why| format!("preprocessor_config.json: {why}"))
    }

    fn of(config: &Map<String, Value>) -> Result<Recipe, String> {
        let name = config.get("image_processor_type").or(config.get("feature_extractor_type")).and_then(Value::as_str);
        let name = name.unwrap_or("ViTImageProcessor");
        let short =
            name.trim_end_matches("Fast").trim_end_matches("ImageProcessor").trim_end_matches("FeatureExtractor");
        if !KNOWN.contains(&short) {
            return Err(format!("{name} is not known here\nhint: prepare the images in Python and give .npz"));
        }
        let on = |key: &str, otherwise: bool| config.get(key).and_then(Value::as_bool).unwrap_or(otherwise);
        for key in ["do_pad", "do_thumbnail", "do_align_long_axis", "rescale_offset", "do_color_quantize"] {
            if on(key, false) {
                return Err(format!("{key} is not done here\nhint: prepare the images in Python and give .npz"));
            }
        }
        // What the classes do where the file does not say.
        let crops = matches!(
            short,
            "CLIP"
                | "ChineseCLIP"
                | "BiT"
                | "Bit"
                | "DeiT"
                | "Deit"
                | "LeViT"
                | "Levit"
                | "MobileNetV1"
                | "MobileNetV2"
                | "MobileViT"
                | "PoolFormer"
                | "Poolformer"
                | "EfficientFormer"
        );
        let mut size = config.get("size").map(size).transpose()?;
        let filter = config.get("resample").and_then(Value::as_u64);
        let filter = filter
            .map_or(Ok(usual_filter(short)), |n| Filter::numbered(n).ok_or(format!("resample {n} is no filter")))?;
        let crop = config.get("crop_size").map(size_of_crop).transpose()?;
        let mut crop = crop.filter(|_| on("do_center_crop", crops));
        if matches!(short, "ConvNext" | "ConvNeXT") {
            // Large images are squeezed, small ones resized with a margin that is cut off.
            let share = config.get("crop_pct").and_then(Value::as_f64).unwrap_or(224.0 / 256.0);
            if let Some(Size::Shortest(n)) = size {
                (size, crop) = match n < 384 {
                    true => (Some(Size::Shortest((n as f64 / share) as usize)), Some([n; 2])),
                    false => (Some(Size::Exact([n; 2])), None),
                };
            }
        } else if matches!(short, "PoolFormer" | "Poolformer") {
            let share = config.get("crop_pct").map_or(Some(0.9), Value::as_f64);
            if let (Some(Size::Shortest(n)), Some(share)) = (size, share) {
                size = Some(Size::Shortest((n as f64 / share) as usize));
            }
        } else if matches!(short, "LeViT" | "Levit")
            && let Some(Size::Shortest(n)) = size
        {
            size = Some(Size::Shortest((256.0 / 224.0 * n as f64) as usize));
        }
        let numbers = |key: &str, otherwise: [f64; 3]| match config.get(key) {
            None | Some(Value::Null) => Ok(otherwise),
            Some(v) => {
                match v.as_array().map(|a| a.iter().filter_map(Value::as_f64).collect::<Vec<f64>>()).as_deref() {
                    Some(&[r, g, b]) => Ok([r, g, b]),
                    _ => Err(format!("{key} is {v}, not three numbers")),
                }
            }
        };
        let (mean, deviation) = (numbers("image_mean", [0.5; 3])?, numbers("image_std", [0.5; 3])?);
        let factor = config.get("rescale_factor").and_then(Value::as_f64).unwrap_or(1.0 / 255.0);
        let resizes = on("do_resize", true);
        if resizes && size.is_none() {
            return Err("it has no size to resize images to".into());
        }
        Ok(Recipe {
            resize: size.filter(|_| resizes).map(|s| (s, filter)),
            crop,
            rescale: on("do_rescale", true).then_some(factor),
            normalize: on("do_normalize", short != "MobileViT").then_some([mean, deviation]),
            bgr: on("do_flip_channel_order", short == "MobileViT"),
        })
    }

    /// The numbers of an image, one channel after the other, and their height and width.
    pub fn apply(&self, image: &Rgb) -> (Vec<f32>, [usize; 2]) {
        let resized = self.resize.map(|(size, filter)| {
            let [height, width] = size.of(image);
            resize(image, width, height, filter)
        });
        let image = resized.as_ref().unwrap_or(image);
        let [height, width] = self.crop.unwrap_or([image.height, image.width]);
        // An image that is smaller stands in the middle of zeros.
        let offset = |have: usize, want: usize| match have >= want {
            true => ((have - want) / 2) as i64,
            false => -(((want - have) as i64 + 1) / 2),
        };
        let (top, left) = (offset(image.height, height), offset(image.width, width));
        let mut out = vec![0.0; 3 * height * width];
        for c in 0..3 {
            let from = if self.bgr { 2 - c } else { c };
            let channel = self.table(from);
            for y in 0..height {
                let row = y as i64 + top;
                for x in 0..width {
                    let col = x as i64 + left;
                    let inside = (0..image.height as i64).contains(&row) && (0..image.width as i64).contains(&col);
                    let pixel =
                        if inside { image.pixels[3 * (row as usize * image.width + col as usize) + from] } else { 0 };
                    out[(c * height + y) * width + x] = channel[usize::from(pixel)];
                }
            }
        }
        (out, [height, width])
    }

    /// What each value of a channel becomes.
    fn table(&self, channel: usize) -> Vec<f32> {
        let value = |pixel: u16| {
            let mut x = f64::from(pixel);
            if let Some(factor) = self.rescale {
                // Rescaled images are of 32 bits.
                x = f64::from((x * factor) as f32);
            }
            match self.normalize {
                Some([mean, deviation]) => (x as f32 - mean[channel] as f32) / deviation[channel] as f32,
                None => x as f32,
            }
        };
        (0..256).map(value).collect()
    }
}

impl Size {
    /// Height and width of an image that is resized.
    fn of(self, image: &Rgb) -> [usize; 2] {
        let n = match self {
            Size::Exact(size) => return size,
            Size::Shortest(n) => n,
        };
        let (short, long) = (image.width.min(image.height), image.width.max(image.height));
        let other = n * long / short.max(1);
        if image.width <= image.height { [other, n] } else { [n, other] }
    }
}

fn usual_filter(short: &str) -> Filter {
    match short {
        "CLIP" | "ChineseCLIP" | "DeiT" | "Deit" | "Beit" | "SigLIP" | "Siglip" | "LeViT" | "Levit" | "PoolFormer"
        | "Poolformer" | "BiT" | "Bit" | "EfficientFormer" => Filter::Bicubic,
        _ => Filter::Bilinear,
    }
}

fn edge(v: &Value) -> Option<usize> {
    v.as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok())
}

fn size(v: &Value) -> Result<Size, String> {
    let get = |key: &str| edge(&v[key]);
    let pair = v.as_array().and_then(|a| match &a[..] {
        [h, w] => Some([edge(h)?, edge(w)?]),
        _ => None,
    });
    match (get("height"), get("width"), get("shortest_edge"), edge(v), pair) {
        (Some(h), Some(w), ..) => Ok(Size::Exact([h, w])),
        (_, _, Some(_), ..) if !v["longest_edge"].is_null() => Err(format!("size {v} is not done here")),
        (_, _, Some(n), ..) => Ok(Size::Shortest(n)),
        (_, _, _, Some(n), _) => Ok(Size::Exact([n; 2])),
        (.., Some(pair)) => Ok(Size::Exact(pair)),
        _ => Err(format!("size {v} is not done here")),
    }
}

fn size_of_crop(v: &Value) -> Result<[usize; 2], String> {
    match size(v)? {
        Size::Exact(size) => Ok(size),
        Size::Shortest(n) => Ok([n; 2]),
    }
}
