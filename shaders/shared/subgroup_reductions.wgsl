// workgroup_reductions.wgsl on adapters with subgroups: first within these, SUBGROUP invocations wide each, then over what every one of
// them has put down.

override SIZE: u32 = 64;
// The width of subgroups.
override SUBGROUP: u32 = 32;

var<workgroup> part: array<f32, SIZE>;

fn total(lane: u32, value: f32) -> f32 {
    part[lane] = subgroupAdd(value);
    workgroupBarrier();
    var sum = part[0];
    for (var i = SUBGROUP; i < SIZE; i = i + SUBGROUP) {
        sum = sum + part[i];
    }
    workgroupBarrier();
    return sum;
}

fn largest(lane: u32, value: f32) -> f32 {
    part[lane] = subgroupMax(value);
    workgroupBarrier();
    var top = part[0];
    for (var i = SUBGROUP; i < SIZE; i = i + SUBGROUP) {
        top = max(top, part[i]);
    }
    workgroupBarrier();
    return top;
}
