// Losses of comparisons: pair k prefers s_c = scores[chosen[k]] to s_r = scores[rejected[k]].
//
//   bradley_terry (Christiano et al. 2017; margin: Touvron et al. 2023): z = s_c - s_r - margin
//   dpo (Rafailov et al. 2023): z = beta ((s_c - ref_c) - (s_r - ref_r)) - margin
//     l = -q log sigmoid(z) - (1 - q) log sigmoid(-z),  q = label, smoothed to q (1 - e) + (1 - q) e;  dl/dz = sigmoid(z) - q
//   ipo (Azar et al. 2023): l = (z - 1/(2 beta))^2,  z = (s_c - ref_c) - (s_r - ref_r), of log-probs averaged per token
//   plus center_coef (s_c + s_r)^2;  loss = scale / denominator sum over pairs of weight l
//   scores, ref_scores, dscores [M]; chosen, rejected [P]; options [3][P]: margin, label, weight; stats [8]; loss [1]
//
// Plan:
//   1. A thread per pair, at twice f32's precision. It leaves two records, (score, slope), in the order of the pairs.
//      Sums in blocks of 4,096 as in policy_loss.wgsl.
//   2. A stable radix sort orders the records by score, 4 bits a pass. Records of one score stay in pair order.
//   3. The first record of each score adds all of that score's slopes, in order.
// Cost: O(M + P log M), in passes of 4 bits of M. A pass reads 24 bytes a record and writes 8.
// Workspace: 44 bytes a pair. History: kernels/notes/preference_loss.md.
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
@group(0) @binding(5) var<storage, read_write> records: array<vec2<u32>>; // [2 P]: score, bits of the slope
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
    let record = p.at[1].y / 2u + 2u * i;
    records[record] = vec2<u32>(c, bitcast<u32>(narrow(wide_add(slope, center))));
    records[record + 1u] = vec2<u32>(r, bitcast<u32>(narrow(wide_add(center, -slope))));
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

// The sort. A pass moves n records by the 4 bits of the score above `shift`; a workgroup has 4,096
// of them, a thread 32.
//   counts [16][blocks]: records of a block with a digit, then the place of the first one
struct SortParams {
  at: array<vec4<u32>, 2>, zero: u32,
  n: u32, blocks: u32, shift: u32,
}
@group(0) @binding(8) var<uniform> sort: SortParams;
@group(0) @binding(0) var<storage, read_write> sorted: array<vec2<u32>>; // not written: pools hold several arrays in a buffer
@group(0) @binding(1) var<storage, read_write> moved: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;

const DIGITS = 16u;
const THREADS = 128u;
const EACH = 32u; // records of a thread
var<workgroup> slots: array<u32, 2048>; // [digit][thread]
var<workgroup> stretches: array<u32, 128>;

fn digit_of(i: u32) -> u32 { return (sorted[sort.at[0].x / 2u + i].x >> sort.shift) & (DIGITS - 1u); }

fn count_digits(block: u32, thread: u32) {
  for (var digit = 0u; digit < DIGITS; digit = digit + 1u) { slots[digit * THREADS + thread] = 0u; }
  let begin = (block * THREADS + thread) * EACH;
  for (var i = begin; i < min(sort.n, begin + EACH); i = i + 1u) {
    let at = digit_of(i) * THREADS + thread;
    slots[at] = slots[at] + 1u;
  }
  workgroupBarrier();
}

// Sums over the 16 counters that begin at 16 thread, which are an eighth of a digit's; then of all
// before them in that digit.
fn own_stretch(thread: u32) -> u32 {
  var own = 0u;
  for (var k = 0u; k < 16u; k = k + 1u) { own = own + slots[16u * thread + k]; }
  stretches[thread] = own;
  workgroupBarrier();
  return own;
}
fn earlier_stretches(thread: u32) -> u32 {
  var before = 0u;
  for (var k = thread / 8u * 8u; k < thread; k = k + 1u) { before = before + stretches[k]; }
  return before;
}

@compute @workgroup_size(128)
fn preference_count(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  count_digits(group.x, thread);
  let own = own_stretch(thread);
  let before = earlier_stretches(thread);
  if (thread % 8u == 7u) { counts[sort.at[0].z + thread / 8u * sort.blocks + group.x] = before + own; }
}

var<workgroup> totals: array<u32, 256>;
@compute @workgroup_size(256)
fn preference_places(@builtin(local_invocation_index) thread: u32) {
  let n = DIGITS * sort.blocks;
  let each = (n + 255u) / 256u;
  let begin = sort.at[0].z + min(n, each * thread);
  let end = sort.at[0].z + min(n, each * (thread + 1u));
  var own = 0u;
  for (var i = begin; i < end; i = i + 1u) { own = own + counts[i]; }
  totals[thread] = own;
  workgroupBarrier();
  var before = 0u;
  for (var k = 0u; k < thread; k = k + 1u) { before = before + totals[k]; }
  for (var i = begin; i < end; i = i + 1u) {
    let here = counts[i];
    counts[i] = before;
    before = before + here;
  }
}

@compute @workgroup_size(128)
fn preference_move(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  count_digits(group.x, thread);
  own_stretch(thread);
  var place = counts[sort.at[0].z + thread / 8u * sort.blocks + group.x] + earlier_stretches(thread);
  for (var k = 0u; k < 16u; k = k + 1u) {
    let here = slots[16u * thread + k];
    slots[16u * thread + k] = place;
    place = place + here;
  }
  workgroupBarrier();
  let begin = (group.x * THREADS + thread) * EACH;
  for (var i = begin; i < min(sort.n, begin + EACH); i = i + 1u) {
    let at = digit_of(i) * THREADS + thread;
    moved[sort.at[0].y / 2u + slots[at]] = sorted[sort.at[0].x / 2u + i];
    slots[at] = slots[at] + 1u;
  }
}

@group(0) @binding(3) var<storage, read_write> dscores: array<f32>; // zeros where a score has no pair
@compute @workgroup_size(256)
fn preference_gather(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first = (group.x + group.y * groups.x) * 256u + thread;
  if (first >= sort.n) { return; }
  let base = sort.at[0].x / 2u;
  let score = sorted[base + first].x;
  if (first > 0u && sorted[base + first - 1u].x == score) { return; }
  var d = 0.0f;
  for (var i = first; i < sort.n; i = i + 1u) {
    let record = sorted[base + i];
    if (record.x != score) { break; }
    d = d + bitcast<f32>(record.y);
  }
  dscores[sort.at[0].w + score] = d;
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
