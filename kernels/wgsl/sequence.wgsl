// What goes by sequence: token rewards, sums of tokens and their gradient.
//
//   token_rewards: kl[t] of d = logp[t] - ref_logp[t]: k1 d, |d|, k2 d^2 / 2, k3 expm1(-d) + d at most 10 (Schulman 2020);
//     reward[t] = -kl_coef kl[t], plus the score of the sequence at its last token
//   sequence_sum: y[b] = sum of x[t] over its tokens, divided by their number if mean;  gradient: dx[t] = dy[b] [/ number]
//   logp, ref_logp, rewards, kl, x, dx [N]; scores, y, dy [B]; offsets [B+1]
//
// Plan: a thread per token, which finds its sequence by bisection; sums: a workgroup per sequence, at twice f32's precision.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  N: u32, B: u32, mean: u32, estimator: u32, kl_coef: f32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> reference: array<f32>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;
@group(0) @binding(3) var<storage, read> offsets: array<i32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> kl: array<f32>;

fn offset(b: u32) -> u32 { return u32(clamp(offsets[p.at[0].w + b], 0, i32(p.N))); }
// the sequence of a token: the first that ends after it
fn owner(token: u32) -> u32 {
  var low = 0u;
  var high = p.B - 1u;
  while (low < high) {
    let middle = (low + high) / 2u;
    if (offset(middle + 1u) > token) { high = middle; } else { low = middle + 1u; }
  }
  return low;
}

@compute @workgroup_size(256)
fn token_rewards(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = (group.x + group.y * groups.x) * 256u + thread;
  if (i >= p.N) { return; }
  let d = x[p.at[0].x + i] - reference[p.at[0].y + i];
  var k = d;
  switch (p.estimator) {
    case 0u: {}
    case 1u: { k = abs(d); }
    case 2u: { k = 0.5 * d * d; }
    default: {
      k = narrow(wide_expm1_less(wide(-d)));
      if (k > 10.0) { k = 10.0; }
    }
  }
  kl[p.at[1].y + i] = k;
  var reward = 0.0f;
  if (p.kl_coef != 0.0) { reward = -p.kl_coef * k; }
  let b = owner(i);
  if (offset(b + 1u) == i + 1u) { reward = reward + scores[p.at[0].z + b]; }
  y[p.at[1].x + i] = reward;
}

@compute @workgroup_size(256)
fn sequence_sum(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let b = group.x + group.y * groups.x;
  if (b >= p.B) { return; }
  let begin = offset(b);
  let end = max(begin, offset(b + 1u));
  var total = wide(0.0);
  for (var i = begin + thread; i < end; i = i + 256u) { total = wide_add(total, wide(x[p.at[0].x + i])); }
  total = sum_all(total, thread);
  if (p.mean != 0u && end > begin) { total = wide_div(total, wide(f32(end - begin))); }
  if (thread == 0u) { y[p.at[1].x + b] = narrow(total); }
}

@compute @workgroup_size(256)
fn sequence_sum_grad(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = (group.x + group.y * groups.x) * 256u + thread;
  if (i >= p.N) { return; }
  let b = owner(i);
  var d = x[p.at[0].x + b];
  if (p.mean != 0u) { d = d / f32(offset(b + 1u) - offset(b)); }
  y[p.at[1].x + i] = d;
}
