// Over a workgroup: first within subgroups, SUBGROUP invocations wide each, then over what every one of them has put down.
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
