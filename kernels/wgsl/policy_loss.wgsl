// The policy's loss per token, its gradient and statistics.
//
//   d = logp - old_logp (clamped to +- log_ratio_clamp),  r = exp(d)
//   clipped_ratio (Schulman et al. 2017):  l = max(-A r, -A clip(r, 1 - low, 1 + high))
//     dual clip (Ye et al. 2020):  where A < 0, l = min(l, -A c);  then l times importance
//   log_likelihood: l = -A logp
//   kl(logp, ref), d' = logp - ref_logp (Schulman 2020; the limit is verl's):
//     k1 d', |d'|, k2 d'^2 / 2, k3 = expm1(-d') + d' at most 10
//   loss = scale sum over tokens of w (l + kl_coef kl - entropy_coef entropy),  w: token_loss.wgsl
//   logp, old_logp, advantages, ref_logp, importance, weights, entropy, dlogp, dentropy [M]; stats [12]; loss [1]
//
// Gradients at ties: where clipping changes nothing (r inside the interval, ends included; |d| at
// the clamp) the gradient is the unclipped one. It is 0 where the clipped branch is strictly
// larger, and where c holds.
//
// Plan: one pass for the gradients, a thread per token. One for the sums, a workgroup per 4,096
// tokens, whose ten sums a last workgroup adds. Terms of a token are at twice f32's precision
// (math.wgsl): losses cancel, and k3 of close policies is tiny.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  M: u32, B: u32, per_sequence: u32, masked: u32, likelihood: u32,
  denominator: vec2<f32>, scale: vec2<f32>, kl_coef: vec2<f32>, entropy_coef: vec2<f32>, low: vec2<f32>, high: vec2<f32>, c: vec2<f32>,
  log_ratio_clamp: f32, estimator: u32, has_c: u32, has_reference: u32, has_importance: u32, has_entropy: u32, blocks: u32, begin: u32, end: u32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> logp: array<f32>;
@group(0) @binding(1) var<storage, read> old_logp: array<f32>;
@group(0) @binding(2) var<storage, read> advantages: array<f32>;
@group(0) @binding(3) var<storage, read> ref_logp: array<f32>;
@group(0) @binding(4) var<storage, read> importance: array<f32>;
@group(0) @binding(5) var<storage, read> weights: array<f32>;

struct Token {
  loss: Wide, dlogp: f32, // of the policy term
  kl: Wide, dkl: f32,
  d: Wide, ratio: Wide,
  clipped: bool, clipped_c: bool,
}

fn token_loss(i: u32) -> Token {
  var t: Token;
  let own = logp[p.at[0].x + i];
  let advantage = advantages[p.at[0].z + i];
  if (p.likelihood != 0u) {
    t.loss = -two_product(advantage, own);
    t.dlogp = -advantage;
  } else {
    let raw = two_sum(own, -old_logp[p.at[0].y + i]);
    t.d = raw;
    if (raw.x > p.log_ratio_clamp) { t.d = wide(p.log_ratio_clamp); }
    if (raw.x < -p.log_ratio_clamp) { t.d = wide(-p.log_ratio_clamp); }
    t.ratio = wide_exp(t.d);
    var inside = t.ratio;
    if (less(inside, p.low)) { inside = p.low; }
    if (less(p.high, inside)) { inside = p.high; }
    let free = -times(t.ratio, advantage);
    let bound = -times(inside, advantage);
    t.clipped = less(free, bound);
    t.loss = free;
    if (t.clipped) { t.loss = bound; }
    if (p.has_c != 0u && advantage < 0.0) {
      let lowest = -times(p.c, advantage);
      t.clipped_c = less(lowest, t.loss);
      if (t.clipped_c) { t.loss = lowest; }
    }
    t.dlogp = narrow(free);
    if (t.clipped || t.clipped_c || abs(raw.x) > p.log_ratio_clamp) { t.dlogp = 0.0; }
    if (p.has_importance != 0u) {
      let factor = importance[p.at[1].x + i];
      t.loss = times(t.loss, factor);
      t.dlogp = t.dlogp * factor;
    }
  }
  if (p.has_reference != 0u) {
    let d = two_sum(own, -ref_logp[p.at[0].w + i]);
    switch (p.estimator) {
      case 0u: { t.kl = d; t.dkl = 1.0; }
      case 1u: { t.kl = d * sign(d.x); t.dkl = sign(d.x); }
      case 2u: { t.kl = 0.5 * wide_mul(d, d); t.dkl = narrow(d); }
      default: {
        t.kl = wide(10.0);
        if (!(d.x < -5.0)) { // beyond it k3 is above 140
          let k3 = wide_expm1_less(-d);
          if (!(k3.x > 10.0)) { t.kl = k3; t.dkl = -narrow(wide_expm1(-d)); }
        }
      }
    }
  }
  return t;
}

@group(0) @binding(6) var<storage, read_write> dlogp: array<f32>;
@group(0) @binding(7) var<storage, read_write> dentropy: array<f32>;
// tokens [begin, end)
@compute @workgroup_size(256)
fn policy_loss_grad(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = p.begin + place(group, groups) * 256u + thread;
  if (i >= p.end) { return; }
  let weight = weights[p.at[1].y + i];
  var d = 0.0f;
  var dh = 0.0f;
  if (weight != 0.0) {
    let t = token_loss(i);
    let factor = p.scale.x * weight;
    d = factor * t.dlogp;
    if (p.kl_coef.x != 0.0) { d = factor * fma(p.kl_coef.x, t.dkl, t.dlogp); }
    dh = -(factor * p.entropy_coef.x);
  }
  dlogp[p.at[1].z + i] = d;
  if (p.has_entropy != 0u) { dentropy[p.at[1].w + i] = dh; }
}

@group(0) @binding(6) var<storage, read> entropy: array<f32>;
@group(0) @binding(7) var<storage, read_write> partial: array<vec2<f32>>;
const SUMS = 11u; // the last is the entropy, weighted
@compute @workgroup_size(256)
fn policy_loss_sums(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = place(group, groups);
  var s: array<Wide, SUMS>;
  for (var i = block * BLOCK + thread; i < min(p.M, (block + 1u) * BLOCK); i = i + 256u) {
    let w = weights[p.at[1].y + i];
    if (w == 0.0) { continue; }
    let t = token_loss(i);
    s[0] = wide_add(s[0], times(t.loss, w));
    s[1] = wide_add(s[1], times(t.kl, w));
    if (p.has_entropy != 0u) {
      s[2] = wide_add(s[2], wide(entropy[p.at[1].z + i]));
      s[10] = wide_add(s[10], two_product(entropy[p.at[1].z + i], w));
    }
    if (t.clipped) { s[3] = wide_add(s[3], wide(1.0)); }
    if (t.clipped_c) { s[4] = wide_add(s[4], wide(1.0)); }
    if (p.likelihood == 0u) {
      s[5] = wide_add(s[5], -t.d);
      s[6] = wide_add(s[6], wide_expm1_less(t.d));
      s[7] = wide_add(s[7], t.ratio);
      if (is_nan(t.ratio.x) || narrow(t.ratio) != 1.0) { s[9] = wide_add(s[9], wide(1.0)); }
    }
    s[8] = wide_add(s[8], wide(1.0));
  }
  for (var k = 0u; k < SUMS + p.zero; k = k + 1u) {
    let all = sum_all(s[k], thread);
    if (thread == 0u && block < p.blocks) { partial[p.at[1].w / 2u + block * SUMS + k] = all; }
  }
}

@group(0) @binding(1) var<storage, read> sequences: array<f32>;
@group(0) @binding(2) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@compute @workgroup_size(256)
fn policy_loss_total(@builtin(local_invocation_index) thread: u32) {
  let at = p.at[0].z / 2u;
  var all: array<Wide, SUMS>;
  for (var k = 0u; k < SUMS + p.zero; k = k + 1u) { all[k] = total(k, p.blocks, SUMS, thread); }
  var count = wide(0.0);
  for (var b = thread; b < p.B; b = b + 256u) { count = wide_add(count, wide(sequences[p.at[0].y + b])); }
  count = sum_all(count, thread);
  if (thread != 0u) { return; }
  var own = all[0]; // of a term whose coefficient is 0 nothing enters, whatever it is
  if (p.kl_coef.x != 0.0) { own = wide_add(own, wide_mul(p.kl_coef, all[1])); }
  if (p.entropy_coef.x != 0.0) { own = wide_add(own, -wide_mul(p.entropy_coef, all[10])); }
  own = wide_mul(p.scale, own);
  loss[p.at[0].w] = narrow(own);
  stats[at] = wide_add(stats[at], own);
  for (var k = 0u; k < 10u + p.zero; k = k + 1u) { stats[at + 1u + k] = wide_add(stats[at + 1u + k], all[k]); }
  stats[at + 11u] = wide_add(stats[at + 11u], count);
}
