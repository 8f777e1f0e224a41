// y[b] = a[b] x[b]: (m, k) (k, n) to (m, n), both operands stored row by row, k and n divisible by four.
// Without workgroup memory or barriers, for software adapters: 16 invocations along the columns, 8 rows x 2 vec4 each, four
// steps of k at a time.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    batch: u32,
    a_row: u32,
    a_col: u32,
    x_row: u32,
    x_col: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let n4 = params.n / 4u;
    let k4 = params.k / 4u;
    let row0 = group.y * 8u;
    let left = group.x * 32u + local.x;
    let right = left + 16u;
    // Invocations beyond the edge compute what is there again, and keep nothing of it.
    let left_at = min(left, n4 - 1u);
    let right_at = min(right, n4 - 1u);
    let last = params.m - 1u;
    for (var batch = group.z; batch < params.batch; batch = batch + groups.z) {
        let a_base = batch * params.m * k4;
        let x_base = batch * params.k * n4;
        let a0 = a_base + min(row0 + 0u, last) * k4;
        let a1 = a_base + min(row0 + 1u, last) * k4;
        let a2 = a_base + min(row0 + 2u, last) * k4;
        let a3 = a_base + min(row0 + 3u, last) * k4;
        let a4 = a_base + min(row0 + 4u, last) * k4;
        let a5 = a_base + min(row0 + 5u, last) * k4;
        let a6 = a_base + min(row0 + 6u, last) * k4;
        let a7 = a_base + min(row0 + 7u, last) * k4;
        var l0 = vec4<f32>(0.0);
        var r0 = vec4<f32>(0.0);
        var l1 = vec4<f32>(0.0);
        var r1 = vec4<f32>(0.0);
        var l2 = vec4<f32>(0.0);
        var r2 = vec4<f32>(0.0);
        var l3 = vec4<f32>(0.0);
        var r3 = vec4<f32>(0.0);
        var l4 = vec4<f32>(0.0);
        var r4 = vec4<f32>(0.0);
        var l5 = vec4<f32>(0.0);
        var r5 = vec4<f32>(0.0);
        var l6 = vec4<f32>(0.0);
        var r6 = vec4<f32>(0.0);
        var l7 = vec4<f32>(0.0);
        var r7 = vec4<f32>(0.0);
        var at = x_base;
        for (var k = 0u; k < k4; k = k + 1u) {
            let v0 = a[a0 + k];
            let v1 = a[a1 + k];
            let v2 = a[a2 + k];
            let v3 = a[a3 + k];
            let v4 = a[a4 + k];
            let v5 = a[a5 + k];
            let v6 = a[a6 + k];
            let v7 = a[a7 + k];
            let p0 = x[at + left_at];
            let q0 = x[at + right_at];
            l0 = l0 + v0.x * p0;
            r0 = r0 + v0.x * q0;
            l1 = l1 + v1.x * p0;
            r1 = r1 + v1.x * q0;
            l2 = l2 + v2.x * p0;
            r2 = r2 + v2.x * q0;
            l3 = l3 + v3.x * p0;
            r3 = r3 + v3.x * q0;
            l4 = l4 + v4.x * p0;
            r4 = r4 + v4.x * q0;
            l5 = l5 + v5.x * p0;
            r5 = r5 + v5.x * q0;
            l6 = l6 + v6.x * p0;
            r6 = r6 + v6.x * q0;
            l7 = l7 + v7.x * p0;
            r7 = r7 + v7.x * q0;
            at = at + n4;
            let p1 = x[at + left_at];
            let q1 = x[at + right_at];
            l0 = l0 + v0.y * p1;
            r0 = r0 + v0.y * q1;
            l1 = l1 + v1.y * p1;
            r1 = r1 + v1.y * q1;
            l2 = l2 + v2.y * p1;
            r2 = r2 + v2.y * q1;
            l3 = l3 + v3.y * p1;
            r3 = r3 + v3.y * q1;
            l4 = l4 + v4.y * p1;
            r4 = r4 + v4.y * q1;
            l5 = l5 + v5.y * p1;
            r5 = r5 + v5.y * q1;
            l6 = l6 + v6.y * p1;
            r6 = r6 + v6.y * q1;
            l7 = l7 + v7.y * p1;
            r7 = r7 + v7.y * q1;
            at = at + n4;
            let p2 = x[at + left_at];
            let q2 = x[at + right_at];
            l0 = l0 + v0.z * p2;
            r0 = r0 + v0.z * q2;
            l1 = l1 + v1.z * p2;
            r1 = r1 + v1.z * q2;
            l2 = l2 + v2.z * p2;
            r2 = r2 + v2.z * q2;
            l3 = l3 + v3.z * p2;
            r3 = r3 + v3.z * q2;
            l4 = l4 + v4.z * p2;
            r4 = r4 + v4.z * q2;
            l5 = l5 + v5.z * p2;
            r5 = r5 + v5.z * q2;
            l6 = l6 + v6.z * p2;
            r6 = r6 + v6.z * q2;
            l7 = l7 + v7.z * p2;
            r7 = r7 + v7.z * q2;
            at = at + n4;
            let p3 = x[at + left_at];
            let q3 = x[at + right_at];
            l0 = l0 + v0.w * p3;
            r0 = r0 + v0.w * q3;
            l1 = l1 + v1.w * p3;
            r1 = r1 + v1.w * q3;
            l2 = l2 + v2.w * p3;
            r2 = r2 + v2.w * q3;
            l3 = l3 + v3.w * p3;
            r3 = r3 + v3.w * q3;
            l4 = l4 + v4.w * p3;
            r4 = r4 + v4.w * q3;
            l5 = l5 + v5.w * p3;
            r5 = r5 + v5.w * q3;
            l6 = l6 + v6.w * p3;
            r6 = r6 + v6.w * q3;
            l7 = l7 + v7.w * p3;
            r7 = r7 + v7.w * q3;
            at = at + n4;
        }
        let y_base = batch * params.m * n4;
        if (row0 + 0u < params.m) {
            let row = y_base + (row0 + 0u) * n4;
            if (left < n4) {
                y[row + left] = l0;
            }
            if (right < n4) {
                y[row + right] = r0;
            }
        }
        if (row0 + 1u < params.m) {
            let row = y_base + (row0 + 1u) * n4;
            if (left < n4) {
                y[row + left] = l1;
            }
            if (right < n4) {
                y[row + right] = r1;
            }
        }
        if (row0 + 2u < params.m) {
            let row = y_base + (row0 + 2u) * n4;
            if (left < n4) {
                y[row + left] = l2;
            }
            if (right < n4) {
                y[row + right] = r2;
            }
        }
        if (row0 + 3u < params.m) {
            let row = y_base + (row0 + 3u) * n4;
            if (left < n4) {
                y[row + left] = l3;
            }
            if (right < n4) {
                y[row + right] = r3;
            }
        }
        if (row0 + 4u < params.m) {
            let row = y_base + (row0 + 4u) * n4;
            if (left < n4) {
                y[row + left] = l4;
            }
            if (right < n4) {
                y[row + right] = r4;
            }
        }
        if (row0 + 5u < params.m) {
            let row = y_base + (row0 + 5u) * n4;
            if (left < n4) {
                y[row + left] = l5;
            }
            if (right < n4) {
                y[row + right] = r5;
            }
        }
        if (row0 + 6u < params.m) {
            let row = y_base + (row0 + 6u) * n4;
            if (left < n4) {
                y[row + left] = l6;
            }
            if (right < n4) {
                y[row + right] = r6;
            }
        }
        if (row0 + 7u < params.m) {
            let row = y_base + (row0 + 7u) * n4;
            if (left < n4) {
                y[row + left] = l7;
            }
            if (right < n4) {
                y[row + right] = r7;
            }
        }
    }
}
