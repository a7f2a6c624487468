// Between the hidden states and the head's products: pairs gathered, their gradients brought back.
//   gathered [rows][C]: h[ids[begin + i]];  h, dh [N,C], bound as a window of rows from `first`
//   dh[ids[begin + i]] += gradients[i] in the order of i
// Pairs of one token are linked, and the first of them adds them all.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  rows: u32, C: u32, begin: u32, first: u32, window: u32, row: u32, N: u32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<i32>;
@group(0) @binding(1) var<storage, read> h: array<f32>;
@group(0) @binding(2) var<storage, read_write> gathered: array<f32>;
@group(0) @binding(3) var<storage, read_write> links: array<u32>; // [rows]: 2 next + whether it is not its token's first

fn id(i: u32) -> u32 { return u32(clamp(ids[p.at[0].x + p.begin + i], 0, i32(p.N) - 1)); }

@compute @workgroup_size(256)
fn gather(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let e = (group.x + group.y * groups.x) * 256u + thread;
  if (e >= p.rows * p.C) { return; }
  let at = id(e / p.C) - p.first; // wraps where it is not in the window
  if (at < p.window) { gathered[p.at[0].z + e] = h[p.at[0].y + at * p.row + e % p.C]; }
}

@compute @workgroup_size(256)
fn link(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group.x * 256u + thread;
  if (i >= p.rows) { return; }
  let own = id(i);
  var later = 0u;
  for (var k = 0u; k < i; k = k + 1u) { if (id(k) == own) { later = 1u; } }
  var next = i + 1u;
  while (next < p.rows && id(next) != own) { next = next + 1u; }
  links[p.at[0].w + i] = 2u * next + later;
}

@group(0) @binding(1) var<storage, read> gradients: array<f32>;
@group(0) @binding(2) var<storage, read> linked: array<u32>;
@group(0) @binding(3) var<storage, read_write> dh: array<f32>;
@compute @workgroup_size(256)
fn scatter(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let e = (group.x + group.y * groups.x) * 256u + thread;
  if (e >= p.rows * p.C) { return; }
  var i = e / p.C;
  let at = id(i) - p.first;
  if (at >= p.window || (linked[p.at[0].z + i] & 1u) != 0u) { return; }
  let place = p.at[0].w + at * p.row + e % p.C;
  var sum = dh[place];
  while (i < p.rows) {
    sum = sum + gradients[p.at[0].y + i * p.C + e % p.C];
    i = linked[p.at[0].z + i] / 2u;
  }
  dh[place] = sum;
}
