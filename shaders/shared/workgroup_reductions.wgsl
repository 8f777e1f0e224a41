// Sum and maximum over the SIZE invocations of a workgroup, as trees with a barrier a step. SIZE is a power of two.

override SIZE: u32 = 64;

var<workgroup> part: array<f32, SIZE>;

fn total(lane: u32, value: f32) -> f32 {
    part[lane] = value;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half = half / 2u) {
        if (lane < half) {
            part[lane] = part[lane] + part[lane + half];
        }
        workgroupBarrier();
    }
    let sum = part[0];
    workgroupBarrier();
    return sum;
}

fn largest(lane: u32, value: f32) -> f32 {
    part[lane] = value;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half = half / 2u) {
        if (lane < half) {
            part[lane] = max(part[lane], part[lane + half]);
        }
        workgroupBarrier();
    }
    let top = part[0];
    workgroupBarrier();
    return top;
}
