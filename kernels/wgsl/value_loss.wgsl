// The value loss of PPO, weighted as the policy's loss (token_loss.wgsl), with its gradient:
//   0.5 max((v - R)^2, (clip(v, old - range, old + range) - R)^2) per token
//   gradient w (v - R), 0 where the clipped square is strictly larger
//   values, old_values, returns, weights, dvalues [M]; stats [8]; loss [1]
//
// Plan: as policy_loss.wgsl.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  M: u32, B: u32, per_sequence: u32, masked: u32, has_old: u32,
  denominator: vec2<f32>, scale: vec2<f32>, range: vec2<f32>, blocks: u32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> values: array<f32>;
@group(0) @binding(1) var<storage, read> old_values: array<f32>;
@group(0) @binding(2) var<storage, read> returns: array<f32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> dvalues: array<f32>;
@group(0) @binding(5) var<storage, read_write> partial: array<vec2<f32>>;

struct Token { square: Wide, error: Wide, clipped: bool }

fn token_loss(v: f32, R: f32, i: u32) -> Token {
  let error = two_sum(v, -R);
  var t = Token(wide_mul(error, error), error, false);
  if (p.has_old == 0u) { return t; }
  let old = wide(old_values[p.at[0].y + i]);
  var kept_value = wide(v);
  let lowest = wide_add(old, -p.range);
  let highest = wide_add(old, p.range);
  if (less(highest, kept_value)) { kept_value = highest; }
  if (less(kept_value, lowest)) { kept_value = lowest; }
  let other = wide_add(kept_value, wide(-R));
  let square = wide_mul(other, other);
  t.clipped = less(t.square, square);
  if (t.clipped) { t.square = square; }
  return t;
}

@compute @workgroup_size(256)
fn value_loss_grad(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups) * 256u + thread;
  if (i >= p.M) { return; }
  let w = weights[p.at[0].w + i];
  var d = 0.0f;
  if (w != 0.0) {
    let t = token_loss(values[p.at[0].x + i], returns[p.at[0].z + i], i);
    if (!t.clipped) { d = p.scale.x * w * narrow(t.error); }
  }
  dvalues[p.at[1].x + i] = d;
}

const SUMS = 7u;
@compute @workgroup_size(256)
fn value_loss_sums(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = place(group, groups);
  var s: array<Wide, SUMS>;
  for (var i = block * BLOCK + thread; i < min(p.M, (block + 1u) * BLOCK); i = i + 256u) {
    let w = weights[p.at[0].w + i];
    if (w == 0.0) { continue; }
    let v = values[p.at[0].x + i];
    let R = returns[p.at[0].z + i];
    let t = token_loss(v, R, i);
    s[0] = wide_add(s[0], times(t.square, 0.5 * w));
    if (t.clipped) { s[1] = wide_add(s[1], wide(1.0)); }
    s[2] = wide_add(s[2], wide(v));
    s[3] = wide_add(s[3], wide_mul(t.error, t.error));
    s[4] = wide_add(s[4], wide(R));
    s[5] = wide_add(s[5], two_product(R, R));
    s[6] = wide_add(s[6], wide(1.0));
  }
  for (var k = 0u; k < SUMS + p.zero; k = k + 1u) {
    let all = sum_all(s[k], thread);
    if (thread == 0u && block < p.blocks) { partial[p.at[1].y / 2u + block * SUMS + k] = all; }
  }
}

@group(0) @binding(2) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@compute @workgroup_size(256)
fn value_loss_total(@builtin(local_invocation_index) thread: u32) {
  let at = p.at[0].z / 2u;
  for (var k = 0u; k < SUMS + p.zero; k = k + 1u) {
    var all = total(k, p.blocks, SUMS, thread);
    if (k == 0u) { all = wide_mul(p.scale, all); }
    if (thread == 0u) { stats[at + k] = wide_add(stats[at + k], all); }
    if (thread == 0u && k == 0u) { loss[p.at[0].w] = narrow(all); }
  }
}
