// Token rewards: reward[t] = -kl_coef kl[t], plus the score of the sequence at its last token.
//   d = logp[t] - ref_logp[t];  kl: k1 d, |d|, k2 d^2 / 2, k3 expm1(-d) + d at most 10 (Schulman 2020; verl's limit)
//   logp, ref_logp, rewards, kl [N]; scores [B]; offsets [B+1]
//
// Plan: a thread per token, which finds its sequence by bisection.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  N: u32, B: u32, estimator: u32, kl_coef: f32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> logp: array<f32>;
@group(0) @binding(1) var<storage, read> reference: array<f32>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;
@group(0) @binding(3) var<storage, read> offsets: array<i32>;
@group(0) @binding(4) var<storage, read_write> rewards: array<f32>;
@group(0) @binding(5) var<storage, read_write> kl: array<f32>;

@compute @workgroup_size(256)
fn token_rewards(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.x + group.y * groups.x) * 256u + thread;
  if (i >= p.N) { return; }
  let d = logp[p.at[0].x + i] - reference[p.at[0].y + i];
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
  rewards[p.at[1].x + i] = reward;
}
