// Products of matrices: c[m,n] = sum_k a[m,k] b[n,k] [+ c[m,n]];  a [M,K], b [N,K] by strides, c
// [M,N] by rows.
//
// Plan: a workgroup per 64 x 64 tile of c, 256 threads with 4 x 4 sums each in registers. 16 steps
// of k at a time go through shared memory, k-major, so that a thread reads four neighbours of each
// factor per step. Each sum is one chain over k, then c is added: the same for every M and N around
// it. Overrides say along which index a factor is contiguous; the loads follow it.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  M: u32, N: u32, K: u32, a_row: u32, a_step: u32, b_row: u32, b_step: u32, c_row: u32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>; // b is binding 0, by operand.wgsl
@group(0) @binding(2) var<storage, read_write> c: array<f32>;

override A_STEPS: bool; // a is contiguous along k, else along m
override B_STEPS: bool;
override ADD: bool;

const TILE = 64u;
const STEPS = 16u;
const ROW = 68u; // of shared memory: 64, and off the banks

var<workgroup> a_tile: array<f32, 1088>; // [STEPS][ROW]
var<workgroup> b_tile: array<f32, 1088>;

@compute @workgroup_size(256)
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let m0 = group.y * TILE;
  let n0 = group.x * TILE;
  let row = thread / 16u * 4u;
  let column = thread % 16u * 4u;
  var sums: array<vec4<f32>, 4>;
  for (var k0 = 0u; k0 < p.K; k0 = k0 + STEPS) {
    workgroupBarrier();
    for (var e = thread; e < TILE * STEPS; e = e + 256u) {
      var lane = e % TILE;
      var step = e / TILE;
      if (A_STEPS) { lane = e / STEPS; step = e % STEPS; }
      var value = 0.0f;
      if (m0 + lane < p.M && k0 + step < p.K) { value = a[p.at[0].y + (m0 + lane) * p.a_row + (k0 + step) * p.a_step]; }
      a_tile[step * ROW + lane] = value;
    }
    for (var e = thread; e < TILE * STEPS; e = e + 256u) {
      var lane = e % TILE;
      var step = e / TILE;
      if (B_STEPS) { lane = e / STEPS; step = e % STEPS; }
      var value = 0.0f;
      if (n0 + lane < p.N && k0 + step < p.K) { value = operand(p.at[0].x + (n0 + lane) * p.b_row + (k0 + step) * p.b_step); }
      b_tile[step * ROW + lane] = value;
    }
    workgroupBarrier();
    for (var k = 0u; k < STEPS; k = k + 1u) {
      let at = k * ROW;
      let y = vec4<f32>(b_tile[at + column], b_tile[at + column + 1u], b_tile[at + column + 2u], b_tile[at + column + 3u]);
      for (var i = 0u; i < 4u; i = i + 1u) { sums[i] = fma(vec4<f32>(a_tile[at + row + i]), y, sums[i]); }
    }
  }
  for (var i = 0u; i < 4u; i = i + 1u) {
    for (var j = 0u; j < 4u; j = j + 1u) {
      if (m0 + row + i >= p.M || n0 + column + j >= p.N) { continue; }
      let at = p.at[0].z + (m0 + row + i) * p.c_row + n0 + column + j;
      if (ADD) { c[at] = c[at] + sums[i][j]; } else { c[at] = sums[i][j]; }
    }
  }
}
