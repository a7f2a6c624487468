// Moments of the unmasked, and whitening by them.
//
//   moments [5]: count, sum, sum of squares, least, greatest; as pairs
//   whiten: (x - mean) * factor [+ mean]; verl and trl: variance / (n - 1), 1 / sqrt(var + 1e-8); openrlhf: variance / n,
//     1 / sqrt(max(var, 1e-8)); 0 where masked.   x, mask, y [N]
//
// Plan: a workgroup per 4,096 tokens, at twice f32's precision, then one over the blocks. Whitening
// goes over x three times: mean, squares about the mean, result.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  N: u32, masked: u32, blocks: u32, centred: u32, shift_mean: u32, biased: u32, op: u32, slot: u32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> mask: array<i32>;
@group(0) @binding(2) var<storage, read> first: array<vec2<f32>>; // moments of the pass before
@group(0) @binding(3) var<storage, read_write> made: array<vec2<f32>>;

const BLOCK = 4096u;
const FAR = 3.4e38f;
fn counts(i: u32) -> bool { return p.masked == 0u || mask[p.at[0].y + i] != 0; }
fn mean() -> Wide { return wide_div(first[p.at[0].z / 2u + 1u], first[p.at[0].z / 2u]); }

// about the mean of the pass before, or about 0; made [blocks][5]
@compute @workgroup_size(256)
fn moments_blocks(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = group.x + group.y * groups.x;
  var centre = wide(0.0);
  if (p.centred != 0u) { centre = mean(); }
  var m: array<Wide, 3>;
  var least = FAR;
  var greatest = -FAR;
  for (var i = block * BLOCK + thread; i < min(p.N, (block + 1u) * BLOCK); i = i + 256u) {
    if (!counts(i)) { continue; }
    let value = x[p.at[0].x + i];
    let d = wide_add(wide(value), -centre);
    m[0] = wide_add(m[0], wide(1.0));
    m[1] = wide_add(m[1], d);
    m[2] = wide_add(m[2], wide_mul(d, d));
    least = min(least, value);
    greatest = max(greatest, value);
  }
  let at = p.at[0].w / 2u + 5u * block;
  for (var k = 0u; k < 3u + p.zero; k = k + 1u) {
    let all = sum_all(m[k], thread);
    if (thread == 0u && block < p.blocks) { made[at + k] = all; }
  }
  let low = -max_all(-least, thread);
  let high = max_all(greatest, thread);
  if (thread == 0u && block < p.blocks) {
    made[at + 3u] = wide(low);
    made[at + 4u] = wide(high);
  }
}

// first [blocks][5], made [5]
@compute @workgroup_size(256)
fn moments_total(@builtin(local_invocation_index) thread: u32) {
  var m: array<Wide, 3>;
  var least = FAR;
  var greatest = -FAR;
  for (var i = thread; i < p.blocks; i = i + 256u) {
    let at = p.at[0].z / 2u + 5u * i;
    for (var k = 0u; k < 3u; k = k + 1u) { m[k] = wide_add(m[k], first[at + k]); }
    least = min(least, first[at + 3u].x);
    greatest = max(greatest, first[at + 4u].x);
  }
  let at = p.at[0].w / 2u;
  var count = 0.0f;
  for (var k = 0u; k < 3u + p.zero; k = k + 1u) {
    let all = sum_all(m[k], thread);
    if (k == 0u) { count = all.x; }
    if (thread == 0u) { made[at + k] = all; }
  }
  let low = -max_all(-least, thread);
  let high = max_all(greatest, thread);
  if (thread != 0u) { return; }
  made[at + 3u] = wide(select(low, infinity(), count == 0.0));
  made[at + 4u] = wide(select(high, -infinity(), count == 0.0));
}

@group(0) @binding(4) var<storage, read> squares: array<vec2<f32>>; // moments about the mean
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> faults: array<atomic<u32>>;

fn root(a: Wide) -> Wide { // Newton's step from the f32 root
  let near = sqrt(a.x);
  if (near == 0.0) { return wide(0.0); }
  return quick_two_sum(near, narrow(wide_add(a, -two_product(near, near))) / (2.0 * near));
}

@compute @workgroup_size(256)
fn whiten(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.x + group.y * groups.x) * 256u + thread;
  if (i >= p.N) { return; }
  let count = first[p.at[0].z / 2u].x;
  var value = 0.0f;
  if (p.biased == 0u && count == 1.0) {
    value = nan();
    if (i == 0u) {
      atomicMax(&faults[p.at[1].z + 8u + p.slot], 4u);
      if (atomicLoad(&faults[p.at[1].z]) == 0u) {
        atomicStore(&faults[p.at[1].z], 4u);
        atomicStore(&faults[p.at[1].z + 1u], p.op);
        atomicStore(&faults[p.at[1].z + 7u], p.slot);
      }
    }
  } else if (counts(i)) {
    let centre = mean();
    var variance = wide_div(squares[p.at[1].x / 2u + 2u], wide(select(count - 1.0, count, p.biased != 0u)));
    if (p.biased == 0u) { variance = wide_add(variance, wide(1e-8)); } else if (variance.x < 1e-8) { variance = wide(1e-8); }
    var result = wide_div(wide_add(wide(x[p.at[0].x + i]), -centre), root(variance));
    if (p.shift_mean == 0u) { result = wide_add(result, centre); }
    value = narrow(result);
  }
  y[p.at[1].y + i] = value;
}
