// Causal attention over packed sequences, grouped-query, without the N x N matrix (Dao et al.,
// FlashAttention). The online softmax is Milakov and Gimelshein's.
//
//   s_ij = (sum over D of q_i k_j) scale,  o_i = sum over j <= i of softmax_j(s_ij) v_j,  lse_i = log sum_j exp(s_ij)
//   q [N,H,D]  k, v [N,G,D]  o [N,H,D]  lse [N,H];  query heads g H/G .. (g+1) H/G - 1 read key/value head g
//
// Plan: a workgroup per block of 64 queries of one sequence and head, 16 x 16 threads. Keys come 32
// at a time, counted from position 0 of the chain. q k^T: 16 of D at a time through shared memory,
// a thread has the scores of 4 queries x 2 keys. The scores become p in shared memory, four threads
// a row. p v: 32 of D at a time through the same memory, a thread keeps 4 queries x D / 16 sums in
// registers. Keys of other sequences are never loaded. Keys that a query does not see have p = 0.
// Each sum has one order, that of positions: the same in any batch.
//
// Budget: 15 KiB of shared memory, of the 16 that WebGPU promises. Loops of products are left
// rolled by fours (their ends say p.zero), which keeps compilation short. History:
// kernels/notes/attention.md.
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> o: array<f32>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

const QUERIES = 64u;
const KEYS = 32u;
const STEPS = 16u;
const ROW = 33u; // of p

var<workgroup> tile: array<f32, 1600>; // q [STEPS][66] and k [STEPS][34], or v [KEYS][32]
var<workgroup> scores: array<f32, 2112>; // [QUERIES][ROW]
var<workgroup> rows: array<u32, 32>; // token rows of the tile's keys
var<workgroup> fall: array<f32, 64>;
var<workgroup> total: array<f32, 64>;
var<workgroup> highest: array<f32, 64>;

// Queries and keys of a step: token row, count and column of the queries; position, end and column of the keys
struct Tile { start: u32, count: u32, q_column: u32, key: u32, reach: u32, k_column: u32 }
fn load_steps(thread: u32, t: Tile, d0: u32) {
  for (var e = thread; e < QUERIES * STEPS; e = e + 256u) {
    let d = e % STEPS;
    let i = e / STEPS;
    var value = 0.0f;
    if (i < t.count && d0 + d < p.D) { value = q[p.at[0].y + (t.start + i) * p.q_row + t.q_column + d0 + d]; }
    tile[d * 66u + i] = value;
  }
  for (var e = thread; e < KEYS * STEPS; e = e + 256u) {
    let d = e % STEPS;
    let j = e / STEPS;
    var value = 0.0f;
    if (t.key + j < t.reach && d0 + d < p.D) { value = k[p.at[0].z + rows[j] * p.k_row + t.k_column + d0 + d]; }
    tile[1056u + d * 34u + j] = value;
  }
}

// Scores become p; the maximum and the sum of each row go on, and `fall` is what its sums fall by.
// A row has four threads, eight keys each, joined in their order.
fn probabilities(thread: u32, position: u32, key: u32) {
  let row = thread / 4u;
  let first = 8u * (thread % 4u);
  let seen = min(KEYS, select(0u, position + row + 1u - key, position + row + 1u > key));
  var most = -3.4e38f;
  for (var j = first; j < min(seen, first + 8u); j = j + 1u) { most = max(most, scores[row * ROW + j]); }
  tile[thread] = most;
  workgroupBarrier();
  most = max(highest[row], max(max(tile[4u * row], tile[4u * row + 1u]), max(tile[4u * row + 2u], tile[4u * row + 3u])));
  var part = 0.0f;
  for (var j = first; j < first + 8u + p.zero; j = j + 1u) { // rolled: an exponential is long
    var probability = 0.0f;
    if (j < seen) { probability = exp_diff(scores[row * ROW + j], most); }
    scores[row * ROW + j] = probability;
    part = part + probability;
  }
  tile[256u + thread] = part;
  workgroupBarrier();
  if (thread % 4u == 0u) {
    let at = 256u + thread;
    let scale = exp_diff(highest[row], most);
    fall[row] = scale;
    total[row] = fma(total[row], scale, (tile[at] + tile[at + 1u]) + (tile[at + 2u] + tile[at + 3u]));
    highest[row] = most;
  }
}

// COLUMNS: sums of a thread along D, D / 16 rounded up
@compute @workgroup_size(256)
fn attention(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = block_of(group.x + group.y * groups.x, 1u);
  if (!block.there) { return; }
  let b = block.b;
  let head = group.z;
  let kv = head / (p.H / p.G);
  let begin = block.index * QUERIES; // within the sequence
  let count = min(QUERIES, length(b) - begin);
  let start = offset(b) + begin; // the first query's token row
  let position = base(b) + begin;
  let reach = position + count; // keys that the last query sees
  let ty = thread / 16u;
  let tx = thread % 16u;
  var sums: array<vec4<f32>, COLUMNS>;
  if (thread < QUERIES) {
    highest[thread] = -3.4e38;
    total[thread] = 0.0;
  }

  for (var key = 0u; key < reach; key = key + KEYS) {
    workgroupBarrier();
    if (thread < KEYS && key + thread < reach) { rows[thread] = token_at(b, key + thread); }
    // q k^T; the zeros are said: left to the default, Mesa 25.0 kept the sums of the tile before
    var s = array<vec2<f32>, 4>(vec2<f32>(), vec2<f32>(), vec2<f32>(), vec2<f32>());
    for (var d0 = 0u; d0 < p.D; d0 = d0 + STEPS) {
      workgroupBarrier();
      load_steps(thread, Tile(start, count, head * p.D, key, reach, kv * p.D), d0);
      workgroupBarrier();
      for (var d4 = 0u; d4 < STEPS + p.zero; d4 = d4 + 4u) {
        for (var d = d4; d < d4 + 4u; d = d + 1u) {
          let x = vec2<f32>(tile[1056u + d * 34u + 2u * tx], tile[1056u + d * 34u + 2u * tx + 1u]);
          for (var i = 0u; i < 4u; i = i + 1u) { s[i] = fma(vec2<f32>(tile[d * 66u + 4u * ty + i]), x, s[i]); }
        }
      }
    }
    for (var i = 0u; i < 4u; i = i + 1u) {
      for (var j = 0u; j < 2u; j = j + 1u) { scores[(4u * ty + i) * ROW + 2u * tx + j] = s[i][j] * p.scale; }
    }
    workgroupBarrier();
    probabilities(thread, position, key);
    // p v
    for (var column = 0u; column < COLUMNS; column = column + 2u) {
      workgroupBarrier();
      for (var e = thread; e < KEYS * 32u; e = e + 256u) {
        let d = 16u * column + e % 32u;
        let j = e / 32u;
        var value = 0.0f;
        if (key + j < reach && d < p.D) { value = v[p.at[0].w + rows[j] * p.v_row + kv * p.D + d]; }
        tile[e] = value;
      }
      workgroupBarrier();
      for (var n = 0u; n < min(2u, COLUMNS - column); n = n + 1u) {
        var y: vec4<f32>;
        for (var i = 0u; i < 4u; i = i + 1u) { y[i] = fall[4u * ty + i]; }
        y = sums[column + n] * y;
        for (var j0 = 0u; j0 < KEYS + p.zero; j0 = j0 + 4u) {
          for (var j = j0; j < j0 + 4u; j = j + 1u) {
            let at = 4u * ty * ROW + j;
            y = fma(vec4<f32>(scores[at], scores[at + ROW], scores[at + 2u * ROW], scores[at + 3u * ROW]), vec4<f32>(tile[j * 32u + 16u * n + tx]), y);
          }
        }
        sums[column + n] = y;
      }
    }
  }

  workgroupBarrier();
  for (var i = 0u; i < 4u; i = i + 1u) {
    let query = 4u * ty + i;
    if (query >= count) { continue; }
    for (var column = 0u; column < COLUMNS; column = column + 1u) {
      let d = 16u * column + tx;
      if (d < p.D) { o[p.at[1].x + ((start + query) * p.H + head) * p.D + d] = sums[column][i] / total[query]; }
    }
  }
  if (thread < count) {
    lse[p.at[1].y + (start + thread) * p.H + head] = narrow(wide_add(wide(highest[thread]), wide_log(wide(total[thread]))));
  }
}
