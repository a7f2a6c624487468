// Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards over each sequence:
//   delta[t] = r[t] + gamma v[t+1] - v[t],  A[t] = delta[t] + gamma lambda A[t+1],  from 0 and 0
//   rewards, values, advantages, returns [N] or [B,T]; offsets [B+1]
// A masked token is passed over. It leaves v[t+1] and A[t+1] as they are, and its outputs are 0.
//
// Plan: a workgroup per sequence, 256 tokens at a time from its end. A token is the map A -> delta
// + c A, c = gamma lambda; a masked one is the identity. A scan (Hillis and Steele 1986) composes
// the maps, so the chain of a long sequence has eight steps per 256 tokens. Which value comes next
// is a scan too: the last unmasked place.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  N: u32, B: u32, T: u32, rewards_row: u32, values_row: u32,
  masked: u32, gamma: f32, gamma_lambda: f32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> rewards: array<f32>;
@group(0) @binding(1) var<storage, read> values: array<f32>;
@group(0) @binding(2) var<storage, read> mask: array<i32>;
@group(0) @binding(3) var<storage, read> offsets: array<i32>;
@group(0) @binding(4) var<storage, read_write> advantages: array<f32>;
@group(0) @binding(5) var<storage, read_write> returns: array<f32>;

var<workgroup> maps: array<vec2<f32>, 256>; // A -> y + x A
var<workgroup> last: array<u32, 256>; // the last unmasked place up to here, counted from 1; 0: none
var<workgroup> tile_values: array<f32, 256>;

// one sequence, whose tokens begin at these places
fn sequence(thread: u32, count: u32, reward_at: u32, value_at: u32, mask_at: u32, advantage_at: u32, return_at: u32) {
  var carried = 0.0f; // A and v after the tile
  var carried_value = 0.0f;
  for (var done = 0u; done < count; done = done + 256u) {
    let inside = done + thread < count;
    let t = count - 1u - (done + thread); // wraps where it is not used
    var counts = inside;
    if (inside && p.masked != 0u) { counts = mask[mask_at + t] != 0; }
    var value = 0.0f;
    if (counts) { value = values[value_at + t]; }
    workgroupBarrier();
    tile_values[thread] = value;
    last[thread] = select(0u, thread + 1u, counts);
    for (var reach = 1u; reach < 256u; reach = reach * 2u) {
      workgroupBarrier();
      var before = 0u;
      if (thread >= reach) { before = last[thread - reach]; }
      workgroupBarrier();
      last[thread] = max(last[thread], before);
    }
    workgroupBarrier();
    var previous = 0u;
    if (thread > 0u) { previous = last[thread - 1u]; }
    var next_value = carried_value;
    if (previous > 0u) { next_value = tile_values[previous - 1u]; }
    let latest = last[255];
    if (latest > 0u) { carried_value = tile_values[latest - 1u]; }

    var own = vec2<f32>(1.0, 0.0);
    if (counts) { own = vec2<f32>(p.gamma_lambda, fma(p.gamma, next_value, rewards[reward_at + t]) - value); }
    maps[thread] = own;
    for (var reach = 1u; reach < 256u; reach = reach * 2u) {
      workgroupBarrier();
      if (thread >= reach) {
        let before = maps[thread - reach];
        own = vec2<f32>(own.x * before.x, fma(own.x, before.y, own.y));
      }
      workgroupBarrier();
      maps[thread] = own;
    }
    workgroupBarrier();
    let advantage = fma(own.x, carried, own.y);
    if (inside) {
      advantages[advantage_at + t] = select(0.0, advantage, counts);
      returns[return_at + t] = select(0.0, advantage + value, counts);
    }
    carried = fma(maps[255].x, carried, maps[255].y);
  }
}

@compute @workgroup_size(256)
fn gae(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let b = group.x + group.y * groups.x;
  if (b >= p.B) { return; }
  let begin = u32(clamp(offsets[p.at[0].w + b], 0, i32(p.N)));
  let end = u32(clamp(offsets[p.at[0].w + b + 1u], i32(begin), i32(p.N)));
  sequence(thread, end - begin, p.at[0].x + begin, p.at[0].y + begin, p.at[0].z + begin, p.at[1].x + begin, p.at[1].y + begin);
}

@compute @workgroup_size(256)
fn gae_padded(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let b = group.x + group.y * groups.x;
  if (b >= p.B) { return; }
  sequence(thread, p.T, p.at[0].x + b * p.rewards_row, p.at[0].y + b * p.values_row, p.at[0].z + b * p.T, p.at[1].x + b * p.T, p.at[1].y + b * p.T);
}
