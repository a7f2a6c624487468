// What the losses over tokens share: weights w, and sums over tokens. The file of the loss declares
// the parameters p.
//
//   token_mean, seq_mean_token_sum, seq_mean_token_sum_norm: w = 1 / denominator
//   seq_mean_token_mean: w = 1 / (denominator n), n the sequence's unmasked tokens
//   0 where masked
//   made [M], mask [M], offsets [B+1], kept [B]: 1 where n > 0
@group(0) @binding(0) var<storage, read> mask: array<i32>;
@group(0) @binding(1) var<storage, read> offsets: array<i32>;
@group(0) @binding(2) var<storage, read_write> made: array<f32>;
@group(0) @binding(3) var<storage, read_write> kept: array<f32>;

const BLOCK = 4096u; // tokens of a partial sum

var<workgroup> counted: atomic<u32>;

fn less(a: Wide, b: Wide) -> bool { return a.x < b.x || (a.x == b.x && a.y < b.y); }
fn times(a: Wide, b: f32) -> Wide { return wide_mul(a, wide(b)); }
fn place(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.x + group.y * groups.x; }

// a workgroup per sequence
@compute @workgroup_size(256)
fn token_weights(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let b = place(group, groups);
  if (b >= p.B) { return; }
  let begin = u32(clamp(offsets[p.at[0].y + b], 0, i32(p.M)));
  let end = u32(clamp(offsets[p.at[0].y + b + 1u], i32(begin), i32(p.M)));
  var n = 0u;
  for (var i = begin + thread; i < end; i = i + 256u) {
    if (p.masked == 0u || mask[p.at[0].x + i] != 0) { n = n + 1u; }
  }
  atomicAdd(&counted, n);
  workgroupBarrier();
  let count = atomicLoad(&counted);
  var divisor = p.denominator;
  if (p.per_sequence != 0u) { divisor = times(divisor, f32(count)); }
  let weight = narrow(wide_div(wide(1.0), divisor));
  for (var i = begin + thread; i < end; i = i + 256u) {
    made[p.at[0].z + i] = select(0.0, weight, p.masked == 0u || mask[p.at[0].x + i] != 0);
  }
  if (thread == 0u) { kept[p.at[0].w + b] = f32(count > 0u); }
}

// the sum over blocks of quantity k: sums [blocks][count]
@group(0) @binding(0) var<storage, read> sums: array<vec2<f32>>;
fn total(k: u32, blocks: u32, count: u32, thread: u32) -> Wide {
  var own = wide(0.0);
  for (var i = thread; i < blocks; i = i + 256u) { own = wide_add(own, sums[p.at[0].x / 2u + i * count + k]); }
  return sum_all(own, thread);
}
