// The backward of causal attention, from lse: nothing of the N x N matrix is kept (Dao et al.,
// FlashAttention).
//
//   p_ij = exp(s_ij - lse_i),  delta_i = sum over D of do_i o_i,  ds_ij = p_ij (do_i v_j - delta_i) scale
//   dq_i = sum over j of ds_ij k_j,  dk_j = sum over i of ds_ij q_i,  dv_j = sum over i of p_ij do_i
//   d_o, q, o, dq [N,H,D]  k, v, dk, dv [N,G,D]  lse [N,H]
//
// Plan: (lse, delta) per query and head, then two passes, each of which owns what it sums. WGSL has
// no float atomics, and no sum would have one order with them. The price: seven products, not five.
//   keys      a workgroup per 32 keys and key/value head goes over the query heads of its group, then over
//             the sequences that see these keys (their own, then those that continue it, in batch order),
//             then over their queries
//   queries   a workgroup per 32 queries and head goes over the keys
// Both compute s and do v per 32 x 32 tile, 8 of D at a time through shared memory, 2 x 2 of a tile
// per thread. Then p and ds stand in shared memory, and the products go 32 of D at a time.
// Budget: 13 KiB of shared memory. Loops are rolled as in attention.wgsl. History:
// kernels/notes/attention.md.
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> d_o: array<f32>;
@group(0) @binding(5) var<storage, read> lse_delta: array<vec2<f32>>;

const TILE = 32u;
const STEPS = 8u;
const ROW = 34u; // of a factor's tile
const SPAN = 33u; // of p and ds

var<workgroup> tile: array<f32, 1088>; // q, k, do, v, each [STEPS][ROW]; or 32 rows of 32 of D
var<workgroup> p_tile: array<f32, 1056>; // [queries][SPAN]
var<workgroup> ds_tile: array<f32, 1056>;
var<workgroup> key_rows: array<u32, 32>;

struct Tile { // queries are token rows from `start`; keys are those of key_rows
  start: u32, queries: u32, query_position: u32, keys: u32, key_position: u32, head: u32, kv: u32,
}

// p and ds of a tile, into shared memory
fn probabilities(t: Tile, thread: u32) {
  let ty = thread / 16u;
  let tx = thread % 16u;
  var s = array<vec2<f32>, 2>(vec2<f32>(), vec2<f32>()); // said, not left to the default: see attention.wgsl
  var dp = array<vec2<f32>, 2>(vec2<f32>(), vec2<f32>());
  let lane = thread / STEPS;
  let step = thread % STEPS;
  for (var d0 = 0u; d0 < p.D; d0 = d0 + STEPS) {
    workgroupBarrier();
    var loaded = vec4<f32>(0.0);
    if (d0 + step < p.D) {
      let d = d0 + step;
      if (lane < t.queries) {
        loaded.x = q[p.at[0].y + (t.start + lane) * p.q_row + t.head * p.D + d];
        loaded.z = d_o[p.at[1].x + (t.start + lane) * p.do_row + t.head * p.D + d];
      }
      if (lane < t.keys) {
        loaded.y = k[p.at[0].z + key_rows[lane] * p.k_row + t.kv * p.D + d];
        loaded.w = v[p.at[0].w + key_rows[lane] * p.v_row + t.kv * p.D + d];
      }
    }
    for (var n = 0u; n < 4u; n = n + 1u) { tile[(n * STEPS + step) * ROW + lane] = loaded[n]; }
    workgroupBarrier();
    for (var d = 0u; d < STEPS; d = d + 1u) {
      let at = d * ROW;
      let key = vec2<f32>(tile[STEPS * ROW + at + 2u * tx], tile[STEPS * ROW + at + 2u * tx + 1u]);
      let value = vec2<f32>(tile[3u * STEPS * ROW + at + 2u * tx], tile[3u * STEPS * ROW + at + 2u * tx + 1u]);
      for (var i = 0u; i < 2u; i = i + 1u) {
        s[i] = fma(vec2<f32>(tile[at + 2u * ty + i]), key, s[i]);
        dp[i] = fma(vec2<f32>(tile[2u * STEPS * ROW + at + 2u * ty + i]), value, dp[i]);
      }
    }
  }
  for (var i = 0u; i < 2u; i = i + 1u) {
    for (var j = 0u; j < 2u; j = j + 1u) {
      p_tile[(2u * ty + i) * SPAN + 2u * tx + j] = s[i][j];
      ds_tile[(2u * ty + i) * SPAN + 2u * tx + j] = dp[i][j];
    }
  }
  workgroupBarrier();
  for (var e = thread; e < TILE * TILE + p.zero; e = e + 256u) { // rolled: an exponential is long
    let query = e / TILE;
    let key = e % TILE;
    let at = query * SPAN + key;
    var probability = 0.0f;
    var ds = 0.0f;
    if (query < t.queries && key < t.keys && t.key_position + key <= t.query_position + query) {
      let row = lse_delta[p.at[1].y / 2u + (t.start + query) * p.H + t.head];
      probability = exp_diff(p_tile[at] * p.scale, row.x);
      ds = (probability * (ds_tile[at] - row.y)) * p.scale;
    }
    p_tile[at] = probability;
    ds_tile[at] = ds;
  }
  workgroupBarrier();
}

@group(0) @binding(6) var<storage, read_write> dk: array<f32>;
@group(0) @binding(7) var<storage, read_write> dv: array<f32>;

fn continues(c: u32, b: u32) -> bool {
  var at = c;
  while (at < p.B && at > b) { at = before(at); }
  return at == b;
}

// COLUMNS: sums of a thread along D, D / 16 rounded up
@compute @workgroup_size(256)
fn attention_grad_keys(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = block_of(group.x + group.y * groups.x, 2u);
  if (!block.there) { return; }
  let b = block.b;
  let begin = block.index * TILE;
  let start = offset(b) + begin;
  var t: Tile;
  t.kv = group.z;
  t.keys = min(TILE, length(b) - begin);
  t.key_position = base(b) + begin;
  let ty = thread / 16u;
  let tx = thread % 16u;
  if (thread < TILE) { key_rows[thread] = start + thread; }
  var dk_sums: array<vec2<f32>, COLUMNS>;
  var dv_sums: array<vec2<f32>, COLUMNS>;
  let last = select(b + 1u, p.B, p.has_prefix != 0u);
  for (var h = 0u; h < p.H / p.G; h = h + 1u) {
    t.head = t.kv * (p.H / p.G) + h;
    for (var c = b; c < last; c = c + 1u) {
      if (!continues(c, b)) { continue; }
      for (var query = select(0u, begin, c == b); query < length(c); query = query + TILE) {
        t.start = offset(c) + query;
        t.queries = min(TILE, length(c) - query);
        t.query_position = base(c) + query;
        probabilities(t, thread);
        for (var column = 0u; column < COLUMNS; column = column + 2u) {
          for (var e = thread; e < TILE * TILE; e = e + 256u) {
            let d = 16u * column + e % TILE;
            var value = 0.0f;
            if (e / TILE < t.queries && d < p.D) { value = d_o[p.at[1].x + (t.start + e / TILE) * p.do_row + t.head * p.D + d]; }
            tile[e] = value;
          }
          workgroupBarrier();
          for (var n = 0u; n < min(2u, COLUMNS - column); n = n + 1u) {
            var sum = dv_sums[column + n];
            for (var i0 = 0u; i0 < TILE + p.zero; i0 = i0 + 4u) {
              for (var i = i0; i < i0 + 4u; i = i + 1u) {
                let at = i * SPAN + 2u * ty;
                sum = fma(vec2<f32>(p_tile[at], p_tile[at + 1u]), vec2<f32>(tile[i * TILE + 16u * n + tx]), sum);
              }
            }
            dv_sums[column + n] = sum;
          }
          workgroupBarrier();
          for (var e = thread; e < TILE * TILE; e = e + 256u) {
            let d = 16u * column + e % TILE;
            var value = 0.0f;
            if (e / TILE < t.queries && d < p.D) { value = q[p.at[0].y + (t.start + e / TILE) * p.q_row + t.head * p.D + d]; }
            tile[e] = value;
          }
          workgroupBarrier();
          for (var n = 0u; n < min(2u, COLUMNS - column); n = n + 1u) {
            var sum = dk_sums[column + n];
            for (var i0 = 0u; i0 < TILE + p.zero; i0 = i0 + 4u) {
              for (var i = i0; i < i0 + 4u; i = i + 1u) {
                let at = i * SPAN + 2u * ty;
                sum = fma(vec2<f32>(ds_tile[at], ds_tile[at + 1u]), vec2<f32>(tile[i * TILE + 16u * n + tx]), sum);
              }
            }
            dk_sums[column + n] = sum;
          }
          workgroupBarrier();
        }
      }
    }
  }
  for (var i = 0u; i < 2u; i = i + 1u) {
    if (2u * ty + i >= t.keys) { continue; }
    let row = ((start + 2u * ty + i) * p.G + t.kv) * p.D;
    for (var column = 0u; column < COLUMNS; column = column + 1u) {
      let d = 16u * column + tx;
      if (d >= p.D) { continue; }
      dk[p.at[1].z + row + d] = dk_sums[column][i];
      dv[p.at[1].w + row + d] = dv_sums[column][i];
    }
  }
}

@group(0) @binding(6) var<storage, read_write> dq: array<f32>;
@compute @workgroup_size(256)
fn attention_grad_queries(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = block_of(group.x + group.y * groups.x, 1u);
  if (!block.there) { return; }
  let b = block.b;
  let begin = block.index * TILE;
  var t: Tile;
  t.head = group.z;
  t.kv = t.head / (p.H / p.G);
  t.start = offset(b) + begin;
  t.queries = min(TILE, length(b) - begin);
  t.query_position = base(b) + begin;
  let reach = t.query_position + t.queries; // keys that the last query sees
  let ty = thread / 16u;
  let tx = thread % 16u;
  var sums: array<vec2<f32>, COLUMNS>;
  for (var key = 0u; key < reach; key = key + TILE) {
    t.keys = min(TILE, reach - key);
    t.key_position = key;
    workgroupBarrier();
    if (thread < t.keys) { key_rows[thread] = token_at(b, key + thread); }
    probabilities(t, thread);
    for (var column = 0u; column < COLUMNS; column = column + 2u) {
      for (var e = thread; e < TILE * TILE; e = e + 256u) {
        let d = 16u * column + e % TILE;
        var value = 0.0f;
        if (e / TILE < t.keys && d < p.D) { value = k[p.at[0].z + key_rows[e / TILE] * p.k_row + t.kv * p.D + d]; }
        tile[e] = value;
      }
      workgroupBarrier();
      for (var n = 0u; n < min(2u, COLUMNS - column); n = n + 1u) {
        var sum = sums[column + n];
        for (var j0 = 0u; j0 < TILE + p.zero; j0 = j0 + 4u) {
          for (var j = j0; j < j0 + 4u; j = j + 1u) {
            let at = 2u * ty * SPAN + j;
            sum = fma(vec2<f32>(ds_tile[at], ds_tile[at + SPAN]), vec2<f32>(tile[j * TILE + 16u * n + tx]), sum);
          }
        }
        sums[column + n] = sum;
      }
      workgroupBarrier();
    }
  }
  for (var i = 0u; i < 2u; i = i + 1u) {
    if (2u * ty + i >= t.queries) { continue; }
    let row = ((t.start + 2u * ty + i) * p.H + t.head) * p.D;
    for (var column = 0u; column < COLUMNS; column = column + 1u) {
      let d = 16u * column + tx;
      if (d < p.D) { dq[p.at[1].z + row + d] = sums[column][i]; }
    }
  }
}

@group(0) @binding(1) var<storage, read> o: array<f32>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> made: array<vec2<f32>>;
// a thread per query and head
@compute @workgroup_size(256)
fn attention_delta(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let e = (group.x + group.y * groups.x) * 256u + thread;
  if (e >= p.N * p.H) { return; }
  var delta = 0.0f;
  let d_o_at = p.at[1].x + e / p.H * p.do_row + e % p.H * p.D;
  for (var d = 0u; d < p.D; d = d + 1u) { delta = fma(d_o[d_o_at + d], o[p.at[0].y + e * p.D + d], delta); }
  made[p.at[0].w / 2u + e] = vec2<f32>(lse[p.at[0].z + e], delta);
}
