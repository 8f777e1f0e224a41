//! RoiAlign: means or maxima of images over boxes that are known while compiling.

use super::scatter::{Combine, scatter};
use super::{Context, Reason};
use crate::ir::{DType, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// A pixel that a result reads: the row of all pixels, its weight, and the result's row.
struct Read {
    row: i32,
    weight: f32,
    bin: i32,
}

/// The two pixels around a coordinate, and the part of the second; `None` outside of the image.
fn around(x: f64, n: usize) -> Option<(usize, usize, f64)> {
    if x < -1.0 || x > n as f64 {
        return None;
    }
    let x = x.max(0.0);
    let low = x as usize;
    Some(if low + 1 >= n { (n - 1, n - 1, 0.0) } else { (low, low + 1, x - low as f64) })
}

/// `(N, C, H, W)`, boxes `(R, 4)` and the image of each to `(R, C, h, w)`.
pub fn roi_align(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let [batch, channels, height, width] = c.shape(x)[..] else { return Err("takes images of two axes".into()) };
    let (boxes, images) = (c.known(1)?, c.known_ints(2)?);
    let boxes = boxes.as_f32().ok_or("boxes must be floats")?.to_vec();
    let size = [c.int("output_height", 1).max(1) as usize, c.int("output_width", 1).max(1) as usize];
    let scale = c.float("spatial_scale", 1.0) as f64;
    let ratio = c.int("sampling_ratio", 0).max(0) as usize;
    // Before operator set 16 there was one way.
    let half = match c.opset() < 16 {
        true => false,
        false => match c.text("coordinate_transformation_mode", "half_pixel").as_str() {
            "half_pixel" => true,
            "output_half_pixel" => false,
            other => return Err(format!("coordinates '{other}' are not known").into()),
        },
    };
    let maxima = match c.text("mode", "avg").as_str() {
        "avg" => false,
        "max" => true,
        other => return Err(format!("mode '{other}' is not known").into()),
    };
    if boxes.len() != images.len() * 4 {
        return Err(format!("{} numbers of boxes for {} images", boxes.len(), images.len()).into());
    }
    let mut reads = Vec::new();
    for (r, (corners, &image)) in boxes.chunks_exact(4).zip(&images).enumerate() {
        if image < 0 || image as usize >= batch {
            return Err(format!("image {image} of {batch}").into());
        }
        let offset = if half { 0.5 } else { 0.0 };
        let at = |k: usize| f64::from(corners[k]) * scale - offset;
        let start = [at(1), at(0)];
        let mut extent = [at(3) - at(1), at(2) - at(0)];
        if !half {
            extent = extent.map(|e| e.max(1.0));
        }
        let bin = [extent[0] / size[0] as f64, extent[1] / size[1] as f64];
        let samples = bin.map(|b| if ratio > 0 { ratio } else { b.ceil().max(0.0) as usize });
        let count = (samples[0] * samples[1]).max(1) as f64;
        for place in 0..size[0] * size[1] {
            let corner = [place / size[1], place % size[1]];
            for sample in 0..samples[0] * samples[1] {
                let k = [sample / samples[1], sample % samples[1]];
                let coordinate =
                    |d: usize| start[d] + (corner[d] as f64 + (k[d] as f64 + 0.5) / samples[d] as f64) * bin[d];
                let inside = around(coordinate(0), height).zip(around(coordinate(1), width));
                // Outside, a sample is 0, which a maximum sees too.
                let (rows, columns) = inside.unwrap_or(((0, 0, 0.0), (0, 0, 0.0)));
                for (y, wy) in [(rows.0, 1.0 - rows.2), (rows.1, rows.2)] {
                    for (x, wx) in [(columns.0, 1.0 - columns.2), (columns.1, columns.2)] {
                        let weight = if inside.is_none() { 0.0 } else { wy * wx };
                        reads.push(Read {
                            row: ((image as usize * height + y) * width + x) as i32,
                            weight: if maxima { weight } else { weight / count } as f32,
                            bin: (r * size[0] * size[1] + place) as i32,
                        });
                    }
                }
            }
        }
    }
    let bins = images.len() * size[0] * size[1];
    let out = [images.len(), channels, size[0], size[1]];
    if reads.is_empty() {
        return Ok(vec![c.filled(x, out, 0.0)]);
    }
    let flat = c.b.reshape(x, [batch, channels, height * width])?;
    let pixels = c.b.transpose(flat, &[0, 2, 1])?;
    let pixels = c.b.reshape(pixels, [batch * height * width, channels])?;
    let n = reads.len();
    let rows = c.integers([n], reads.iter().map(|r| r.row).collect());
    let weights = c.floats([n, 1], reads.iter().map(|r| r.weight).collect());
    let places = c.integers([n], reads.iter().map(|r| r.bin).collect());
    let read = c.b.gather(pixels, rows, 0)?;
    let read = c.b.mul(read, weights)?;
    let how = if maxima { Combine::Max } else { Combine::Add };
    let start = c.filled(x, [bins, channels], if maxima { f64::NEG_INFINITY } else { 0.0 });
    let y = scatter(c, start, places, read, how)?;
    debug_assert_eq!(c.ty(y).dtype, DType::F32);
    let y = c.b.reshape(y, [images.len(), size[0] * size[1], channels])?;
    let y = c.b.transpose(y, &[0, 2, 1])?;
    Ok(vec![c.b.reshape(y, out)?])
}
