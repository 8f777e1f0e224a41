//! NonMaxSuppression, on boxes and scores that are known while compiling: how many are selected depends on them.

use super::{Context, Reason};
use crate::ir::Value;

type Lowered = Result<Vec<Value>, Reason>;

/// Corners of a box, smaller coordinates first.
fn corners(b: &[f32], centred: bool) -> [f64; 4] {
    let [a, b, c, d] = [b[0], b[1], b[2], b[3]].map(f64::from);
    match centred {
        true => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        false => [a.min(c), b.min(d), a.max(c), b.max(d)],
    }
}

/// The part of two boxes' union that both cover.
fn overlap(a: [f64; 4], b: [f64; 4]) -> f64 {
    let side = |d: usize| (a[d + 2].min(b[d + 2]) - a[d].max(b[d])).max(0.0);
    let area = |x: [f64; 4]| (x[2] - x[0]) * (x[3] - x[1]);
    let both = side(0) * side(1);
    let union = area(a) + area(b) - both;
    if both <= 0.0 || area(a) <= 0.0 || area(b) <= 0.0 || union <= 0.0 { 0.0 } else { both / union }
}

/// Boxes `(B, N, 4)` with scores `(B, classes, N)` to rows of image, class and box, best first within each class.
pub fn non_max_suppression(c: &mut Context) -> Lowered {
    let (boxes, scores) = (c.known(0)?, c.known(1)?);
    let most = match c.opt(2) {
        Some(_) => c.known_ints(2)?.first().copied().unwrap_or(0),
        None => 0,
    };
    let threshold = c.known_float(3)?.unwrap_or(0.0);
    let least = c.known_float(4)?;
    let centred = c.int("center_point_box", 0) != 0;
    let ([batch, n, 4], [_, classes, _]) = (boxes.shape(), scores.shape()) else {
        return Err(format!("boxes {:?} with scores {:?}", boxes.shape(), scores.shape()).into());
    };
    let (Some(boxes), Some(points)) = (boxes.as_f32(), scores.as_f32()) else {
        return Err("boxes and scores must be floats".into());
    };
    if scores.shape() != [*batch, *classes, *n] {
        return Err(format!("scores {:?} for {n} boxes of {batch} images", scores.shape()).into());
    }
    let mut selected = Vec::new();
    for image in 0..*batch {
        for class in 0..*classes {
            let own = &points[(image * classes + class) * n..][..*n];
            let mut order: Vec<usize> = (0..*n).filter(|&i| least.is_none_or(|t| own[i] > t)).collect();
            order.sort_by(|&a, &b| own[b].total_cmp(&own[a]));
            let at = |i: usize| corners(&boxes[(image * n + i) * 4..][..4], centred);
            let mut kept: Vec<usize> = Vec::new();
            for i in order {
                if kept.len() as i64 >= most {
                    break;
                }
                if kept.iter().all(|&k| overlap(at(i), at(k)) <= f64::from(threshold)) {
                    kept.push(i);
                }
            }
            selected.extend(kept.into_iter().flat_map(|i| [image as i32, class as i32, i as i32]));
        }
    }
    Ok(vec![c.integers([selected.len() / 3, 3], selected)])
}
