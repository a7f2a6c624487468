// Losses of comparisons: pair k prefers s_c = scores[chosen[k]] to s_r = scores[rejected[k]].
//
//   bradley_terry (Christiano et al. 2017; margin: Touvron et al. 2023): z = s_c - s_r - margin
//   dpo (Rafailov et al. 2023): z = beta ((s_c - ref_c) - (s_r - ref_r)) - margin
//     l = -q log sigmoid(z) - (1 - q) log sigmoid(-z),  q = label, smoothed to q (1 - e) + (1 - q) e;  dl/dz = sigmoid(z) - q
//   ipo (Azar et al. 2023): l = (z - 1/(2 beta))^2,  z = (s_c - ref_c) - (s_r - ref_r), of log-probs averaged per token
//   plus center_coef (s_c + s_r)^2;  loss = scale / denominator sum over pairs of weight l
//   scores, ref_scores, dscores [M]; chosen, rejected [P]; options [3][P]: margin, label, weight; stats [8]; loss [1]
//
// Plan: a thread per pair, at twice f32's precision, leaves the derivatives of its two scores; then a thread per score adds
// those of its pairs in order (pairs are few). Sums in blocks as in policy_loss.wgsl.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  M: u32, P: u32, form: u32, has_reference: u32, blocks: u32,
  beta: vec2<f32>, target_gap: vec2<f32>, smoothing: vec2<f32>, center_coef: vec2<f32>, factor: vec2<f32>, // factor: scale / denominator
  has_margin: u32, has_label: u32, has_weight: u32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> scores: array<f32>;
@group(0) @binding(1) var<storage, read> ref_scores: array<f32>;
@group(0) @binding(2) var<storage, read> chosen: array<i32>;
@group(0) @binding(3) var<storage, read> rejected: array<i32>;
@group(0) @binding(4) var<storage, read> options: array<f32>;
@group(0) @binding(5) var<storage, read_write> slopes: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> partial: array<vec2<f32>>;

const BLOCK = 4096u;
const SUMS = 7u;
const IPO = 2u;

fn option(there: u32, k: u32, pair: u32, otherwise: f32) -> f32 {
  if (there == 0u) { return otherwise; }
  return options[p.at[1].x + k * p.P + pair];
}
fn times(a: Wide, b: f32) -> Wide { return wide_mul(a, wide(b)); }

@compute @workgroup_size(256)
fn preference_pairs(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  var s: array<Wide, SUMS>;
  for (var i = group.x * BLOCK + thread; i < min(p.P, (group.x + 1u) * BLOCK); i = i + 256u) {
    let c = u32(clamp(chosen[p.at[0].z + i], 0, i32(p.M) - 1));
    let r = u32(clamp(rejected[p.at[0].w + i], 0, i32(p.M) - 1));
    var a = wide(scores[p.at[0].x + c]);
    var b = wide(scores[p.at[0].x + r]);
    let both = two_sum(a.x, b.x);
    if (p.has_reference != 0u) {
      a = two_sum(a.x, -ref_scores[p.at[0].y + c]);
      b = two_sum(b.x, -ref_scores[p.at[0].y + r]);
    }
    var z = wide_add(a, -b);
    var l: Wide;
    var dz: Wide;
    if (p.form == IPO) {
      let off = wide_add(z, -p.target_gap);
      l = wide_mul(off, off);
      dz = 2.0 * off;
    } else {
      z = wide_add(wide_mul(p.beta, z), wide(-option(p.has_margin, 0u, i, 0.0)));
    }
    var size = z;
    if (z.x < 0.0) { size = -z; }
    let small = wide_exp(-size);
    let likely = wide_div(wide(1.0), wide_add(wide(1.0), small)); // sigmoid(|z|)
    var sigmoid = likely;
    if (z.x < 0.0) { sigmoid = wide_mul(small, likely); }
    if (p.form != IPO) {
      let label = wide(option(p.has_label, 1u, i, 1.0));
      let other = wide_add(wide(1.0), -label);
      let q = wide_add(wide_mul(label, wide_add(wide(1.0), -p.smoothing)), wide_mul(other, p.smoothing));
      let log_tail = wide_log1p(small);
      var positive = wide_add(size, log_tail); // -log sigmoid(z), -log sigmoid(-z)
      var negative = log_tail;
      if (z.x > 0.0) { positive = log_tail; negative = wide_add(size, log_tail); }
      l = wide_add(wide_mul(q, positive), wide_mul(wide_add(wide(1.0), -q), negative));
      dz = wide_mul(p.beta, wide_add(sigmoid, -q));
    }
    let weight = times(p.factor, option(p.has_weight, 2u, i, 1.0));
    let slope = wide_mul(weight, dz);
    var center = wide(0.0);
    if (p.center_coef.x != 0.0) {
      l = wide_add(l, wide_mul(p.center_coef, wide_mul(both, both)));
      center = wide_mul(weight, 2.0 * wide_mul(p.center_coef, both));
    }
    slopes[p.at[1].y / 2u + i] = vec2<f32>(narrow(wide_add(slope, center)), narrow(wide_add(center, -slope)));
    s[0] = wide_add(s[0], wide_mul(weight, l));
    s[1] = wide_add(s[1], wide(select(select(0.0, 0.5, z.x == 0.0), 1.0, z.x > 0.0)));
    s[2] = wide_add(s[2], z);
    s[3] = wide_add(s[3], a);
    s[4] = wide_add(s[4], b);
    s[5] = wide_add(s[5], wide(1.0));
    s[6] = wide_add(s[6], sigmoid);
  }
  for (var k = 0u; k < SUMS + p.zero; k = k + 1u) {
    let all = sum_all(s[k], thread);
    if (thread == 0u) { partial[p.at[1].z / 2u + group.x * SUMS + k] = all; }
  }
}

@group(0) @binding(5) var<storage, read> slopes_of: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> dscores: array<f32>;
@compute @workgroup_size(256)
fn preference_scores(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let m = (group.x + group.y * groups.x) * 256u + thread;
  if (m >= p.M) { return; }
  var d = 0.0f;
  for (var i = 0u; i < p.P; i = i + 1u) {
    if (u32(chosen[p.at[0].z + i]) == m) { d = d + slopes_of[p.at[1].y / 2u + i].x; }
    if (u32(rejected[p.at[0].w + i]) == m) { d = d + slopes_of[p.at[1].y / 2u + i].y; }
  }
  dscores[p.at[1].w + m] = d;
}

@group(0) @binding(0) var<storage, read> sums: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;
@compute @workgroup_size(256)
fn preference_total(@builtin(local_invocation_index) thread: u32) {
  for (var k = 0u; k < SUMS + p.zero; k = k + 1u) {
    var own = wide(0.0);
    for (var i = thread; i < p.blocks; i = i + 256u) { own = wide_add(own, sums[p.at[0].x / 2u + i * SUMS + k]); }
    let all = sum_all(own, thread);
    let at = p.at[0].y / 2u + k;
    if (thread == 0u) { stats[at] = wide_add(stats[at], all); }
    if (thread == 0u && k == 0u) { loss[p.at[0].z] = narrow(all); }
  }
}
