//! Resizing as Pillow (13) does it, to the bit: a convolution along the rows and one along the columns, each rounded to eight bits.

/// Fraction bits of a coefficient.
const PRECISION: u32 = 32 - 8 - 2;

/// A filter by Pillow's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// The filter of `resample` in preprocessor_config.json.
    pub fn numbered(n: u64) -> Option<Filter> {
        use Filter::*;
        [Nearest, Lanczos, Bilinear, Bicubic, Box, Hamming].get(usize::try_from(n).ok()?).copied()
    }

    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
        let size = x.abs();
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Filter::Bilinear => (1.0 - size).max(0.0),
            Filter::Hamming if size == 0.0 => 1.0,
            Filter::Hamming if size >= 1.0 => 0.0,
            Filter::Hamming => {
                let x = size * std::f64::consts::PI;
                x.sin() / x * (0.54 + 0.46 * x.cos())
            }
            Filter::Bicubic => {
                const A: f64 = -0.5;
                match size {
                    x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

/// An image of three channels of eight bits, by rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u8>,
}

/// For each place along an axis of the result: the first place that it reads, and coefficients for that and those after it.
type Taps = Vec<(usize, Vec<i32>)>;

fn taps(from: usize, to: usize, filter: Filter) -> Taps {
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.0);
    let support = filter.support() * wide;
    let at = |place: usize| {
        let center = (place as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as i64).max(0) as usize;
        let end = ((center + support + 0.5) as i64).min(from as i64) as usize;
        let weights: Vec<f64> = (first..end).map(|i| filter.at((i as f64 - center + 0.5) * (1.0 / wide))).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |w: f64| {
            let w = if total == 0.0 { w } else { w / total } * f64::from(1u32 << PRECISION);
            (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
        };
        (first, weights.into_iter().map(fixed).collect())
    };
    (0..to).map(at).collect()
}

/// The image at another size.
pub fn resize(image: &Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    if (width, height) == (image.width, image.height) {
        return image.clone();
    }
    if filter == Filter::Nearest {
        return nearest(image, width, height);
    }
    let in_rows = |image: &Rgb| along_rows(image, &taps(image.width, width, filter));
    let in_columns = |image: &Rgb| along_columns(image, &taps(image.height, height, filter));
    // The order decides what is rounded first. Pillow 13 begins with the columns where that takes away more than twice as many rows as
    // the other pass takes away columns; earlier versions always begin with the rows.
    let columns_first = image.height.saturating_sub(height) > 2 * image.width.saturating_sub(width);
    match (width == image.width, height == image.height) {
        (true, _) => in_columns(image),
        (_, true) => in_rows(image),
        _ if columns_first => in_rows(&in_columns(image)),
        _ => in_columns(&in_rows(image)),
    }
}

fn nearest(image: &Rgb, width: usize, height: usize) -> Rgb {
    // Pillow adds up steps, which decides where one falls on an edge between two places.
    let places = |from: usize, to: usize| {
        let step = from as f64 / to as f64;
        let mut at = step * 0.5;
        let each = |_| {
            let place = (at as usize).min(from - 1);
            at += step;
            place
        };
        (0..to).map(each).collect::<Vec<usize>>()
    };
    let (rows, columns) = (places(image.height, height), places(image.width, width));
    let mut pixels = Vec::with_capacity(3 * width * height);
    for row in rows {
        for column in &columns {
            pixels.extend_from_slice(&image.pixels[3 * (row * image.width + column)..][..3]);
        }
    }
    Rgb { width, height, pixels }
}

/// A sum of products in fixed point, as eight bits.
fn rounded(sum: i64) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i64 = 1 << (PRECISION - 1);

fn along_rows(image: &Rgb, taps: &Taps) -> Rgb {
    let mut pixels = Vec::with_capacity(3 * taps.len() * image.height);
    for row in image.pixels.chunks_exact(3 * image.width) {
        for (first, weights) in taps {
            let mut sums = [HALF; 3];
            for (pixel, &w) in row[3 * first..].chunks_exact(3).zip(weights) {
                sums.iter_mut().zip(pixel).for_each(|(s, &p)| *s += i64::from(p) * i64::from(w));
            }
            pixels.extend(sums.map(rounded));
        }
    }
    Rgb { width: taps.len(), height: image.height, pixels }
}

fn along_columns(image: &Rgb, taps: &Taps) -> Rgb {
    let width = 3 * image.width;
    let mut pixels = Vec::with_capacity(width * taps.len());
    let mut sums = vec![HALF; width];
    for (first, weights) in taps {
        sums.fill(HALF);
        for (row, &w) in image.pixels[first * width..].chunks_exact(width).zip(weights) {
            sums.iter_mut().zip(row).for_each(|(s, &p)| *s += i64::from(p) * i64::from(w));
        }
        pixels.extend(sums.iter().map(|&s| rounded(s)));
    }
    Rgb { width: image.width, height: taps.len(), pixels }
}
