// Log-softmax statistics of rows of logits, and their gradient. With x = logit / T:
//
//   logp = x_y - log sum_j exp(x_j);  lse = log sum_j exp(x_j);  entropy = lse - sum_j p_j x_j, nats
//   dx_j = -(dlogp p_j + dentropy p_j (log p_j + H)) / T;  at the target dlogp (1 - p) / T = -dlogp expm1(logp) / T
//   logits, dlogits [rows][columns], a slice of the vocabulary from column `first`
//   y, logp, lse, entropy, dlogp, dentropy [M]
//
// The target's own term stays out of S = sum over j != y of exp(x_j - m), so that a confident token
// keeps its digits:
//   logp = -log1p(S) where x_y = m, else (x_y - m) - log(S + exp(x_y - m))
// Differences of logits are scaled, never logits, so no finite logit overflows at any temperature:
// m is a logit.
//
// Plan: a workgroup per row and slice: the maximum, then S and U = sum exp(x_j - m) (x_j - m) at
// twice f32's precision. Slices are joined in order in state [rows][8]: m, S, U, x_y. A logit of
// -1e30 or less is absent: its bits say so, and it never enters arithmetic. A NaN makes the row
// NaN. The row's order depends on the slices alone.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  rows: u32, columns: u32, logits_row: u32, dlogits_row: u32,
  first: u32, begin: u32, // first column; the row of y and of the results that row 0 is
  opening: u32, closing: u32, with_entropy: u32, inverse_temperature: f32,
}
@group(0) @binding(8) var<uniform> p: Params;
// binding 0, by operand.wgsl: the logits
@group(0) @binding(1) var<storage, read> y: array<i32>;
@group(0) @binding(2) var<storage, read_write> state: array<f32>;
@group(0) @binding(3) var<storage, read_write> logp: array<f32>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> entropy: array<f32>;

const NONE = -3.4e38f; // no logit yet
fn absent(x: f32) -> bool { return bitcast<u32>(x) >= 0xf149f2cau; } // -1e30 and below, -inf

struct Row { m: f32, s: Wide, u: Wide }

// (x - m) / T for x <= m, -1e30 at least: nothing overflows
fn scaled_difference(x: f32, m: f32) -> Wide {
  let d = two_sum(x, -m);
  let t = p.inverse_temperature;
  if (t > 1.0 && d.x < -1e30 / t) { return wide(-1e30); }
  return wide_add(two_product(d.x, t), wide(d.y * t));
}

fn join(a: Row, b: Row) -> Row {
  if (b.m == NONE) { return a; }
  if (a.m == NONE) { return b; }
  var high = a;
  var low = b;
  if (a.m < b.m) { high = b; low = a; }
  let d = scaled_difference(low.m, high.m);
  let factor = wide_exp(d);
  if (factor.x == 0.0) { return high; }
  high.u = wide_add(high.u, wide_mul(factor, wide_add(low.u, wide_mul(d, low.s))));
  high.s = wide_add(high.s, wide_mul(factor, low.s));
  return high;
}

var<workgroup> found_nan: atomic<u32>;

@compute @workgroup_size(256)
fn row_stats(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let r = group.x + group.y * groups.x;
  if (r >= p.rows) { return; }
  let base = p.at[0].x + r * p.logits_row;
  let label = u32(y[p.at[0].y + p.begin + r]) - p.first; // wraps where it is not in the slice
  var top = NONE;
  for (var j = thread; j < p.columns; j = j + 256u) {
    let x = operand(base + j);
    if (is_nan(x)) { atomicStore(&found_nan, 1u); }
    if (!absent(x)) { top = max(top, x); }
  }
  let m = max_all(top, thread);
  var s = wide(0.0);
  var u = wide(0.0);
  for (var j = thread; j < p.columns; j = j + 256u) {
    let x = operand(base + j);
    if (absent(x) || j == label) { continue; }
    let d = scaled_difference(x, m);
    if (d.x < -87.0) { continue; }
    let e = exp_with_error(d.x, d.y);
    s = wide_add(s, wide(e));
    u = wide_add(u, two_product(e, d.x));
  }
  s = sum_all(s, thread);
  u = sum_all(u, thread);
  if (thread != 0u) { return; }

  let at = p.at[0].z + 8u * r;
  var row = Row(m, s, u);
  var x_y = NONE;
  var bad = atomicLoad(&found_nan) != 0u;
  if (p.opening == 0u) {
    row = join(Row(state[at], Wide(state[at + 1u], state[at + 2u]), Wide(state[at + 3u], state[at + 4u])), row);
    x_y = state[at + 5u];
    bad = bad || state[at + 6u] != 0.0;
  }
  if (label < p.columns && !absent(operand(base + label))) { x_y = operand(base + label); }
  if (p.closing == 0u) {
    state[at] = row.m;
    state[at + 1u] = row.s.x;
    state[at + 2u] = row.s.y;
    state[at + 3u] = row.u.x;
    state[at + 4u] = row.u.y;
    state[at + 5u] = x_y;
    state[at + 6u] = select(0.0, 1.0, bad);
    return;
  }

  var result = vec3<f32>(-infinity(), -infinity(), 0.0); // logp, lse, entropy where nothing is possible
  if (row.m != NONE) {
    var d = wide(0.0);
    var own = wide(0.0);
    if (x_y != NONE) {
      d = scaled_difference(x_y, row.m);
      own = wide_exp(d);
    }
    let all = wide_add(row.s, own);
    let tail = wide_log(all); // lse - m; where x_y = m, own is 1 and this is log1p(S)
    if (x_y != NONE) { result.x = min(narrow(wide_add(d, -tail)), 0.0); }
    result.y = narrow(wide_add(two_product(row.m, p.inverse_temperature), tail));
    var mean = row.u;
    if (own.x > 0.0) { mean = wide_add(mean, wide_mul(own, d)); }
    result.z = max(narrow(wide_add(tail, -wide_div(mean, all))), 0.0);
  }
  if (bad) { result = vec3<f32>(nan()); }
  logp[p.at[0].w + p.begin + r] = result.x;
  lse[p.at[1].x + p.begin + r] = result.y;
  entropy[p.at[1].y + p.begin + r] = result.z;
}

@group(0) @binding(2) var<storage, read_write> dlogits: array<f32>;
@group(0) @binding(3) var<storage, read> logp_of: array<f32>;
@group(0) @binding(4) var<storage, read> lse_of: array<f32>;
@group(0) @binding(5) var<storage, read> entropy_of: array<f32>;
@group(0) @binding(6) var<storage, read> dlogp: array<f32>;
@group(0) @binding(7) var<storage, read> dentropy: array<f32>;

fn gradient(logit: f32, column: u32, m: u32) -> f32 {
  let d = dlogp[p.at[1].z + m];
  var probability = 0.0f;
  var spread = 0.0f;
  if (!absent(logit)) {
    let x = logit * p.inverse_temperature;
    probability = exp_diff(x, lse_of[p.at[1].x + m]);
    if (p.with_entropy != 0u && probability > 0.0) {
      spread = dentropy[p.at[1].w + m] * (probability * ((x - lse_of[p.at[1].x + m]) + entropy_of[p.at[1].y + m]));
    }
  }
  var own = d * probability;
  if (u32(y[p.at[0].y + m]) == column) { own = d * narrow(wide_expm1(wide(logp_of[p.at[0].w + m]))); }
  return -((own + spread) * p.inverse_temperature);
}

@compute @workgroup_size(256)
fn logits_grad(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let j = group.x * 256u + thread;
  if (j >= p.columns) { return; }
  dlogits[p.at[0].z + group.y * p.dlogits_row + j] = gradient(operand(p.at[0].x + group.y * p.logits_row + j), p.first + j, p.begin + group.y);
}
// dlogits holds the logits
@compute @workgroup_size(256)
fn logits_grad_in_place(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let j = group.x * 256u + thread;
  if (j >= p.columns) { return; }
  let at = p.at[0].z + group.y * p.dlogits_row + j;
  dlogits[at] = gradient(dlogits[at], p.first + j, p.begin + group.y);
}
