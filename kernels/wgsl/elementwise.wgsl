// One result per element: add, sub, mul, y = x factor + shift, clamp and its gradient, y += x, fill;
// and the sum of all.
//   a, b, x, y [n]
//
// Plan: a thread per element. The sum: a workgroup per block of 4,096 elements, at twice f32's
// precision (math.wgsl), then one workgroup over the blocks. The order depends on n alone.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  n: u32, factor: f32, shift: f32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec2<f32>>;

const BLOCK = 4096u;

fn place(group: vec3<u32>, groups: vec3<u32>, thread: u32) -> u32 { return (group.x + group.y * groups.x) * 256u + thread; }

@compute @workgroup_size(256)
fn add(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups, thread);
  if (i < p.n) { y[p.at[0].z + i] = a[p.at[0].x + i] + b[p.at[0].y + i]; }
}
@compute @workgroup_size(256)
fn sub(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups, thread);
  if (i < p.n) { y[p.at[0].z + i] = a[p.at[0].x + i] - b[p.at[0].y + i]; }
}
@compute @workgroup_size(256)
fn mul(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups, thread);
  if (i < p.n) { y[p.at[0].z + i] = a[p.at[0].x + i] * b[p.at[0].y + i]; }
}
@compute @workgroup_size(256)
fn scale(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups, thread);
  if (i < p.n) { y[p.at[0].z + i] = fma(a[p.at[0].x + i], p.factor, p.shift); }
}
@compute @workgroup_size(256)
fn clamp_all(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups, thread);
  if (i >= p.n) { return; }
  let x = a[p.at[0].x + i];
  y[p.at[0].z + i] = select(min(max(x, p.factor), p.shift), x, is_nan(x)); // from factor to shift
}
@compute @workgroup_size(256)
fn clamp_grad(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups, thread);
  if (i >= p.n) { return; }
  let x = b[p.at[0].y + i];
  y[p.at[0].z + i] = select(0.0, a[p.at[0].x + i], p.factor <= x && x <= p.shift && !is_nan(x)); // from factor to shift
}
@compute @workgroup_size(256)
fn accumulate(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups, thread);
  if (i < p.n) { y[p.at[0].z + i] = y[p.at[0].z + i] + a[p.at[0].x + i]; }
}
@compute @workgroup_size(256)
fn fill(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = place(group, groups, thread);
  if (i < p.n) { y[p.at[0].z + i] = p.factor; }
}

@compute @workgroup_size(256)
fn sum_blocks(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = group.x + group.y * groups.x;
  var total = wide(0.0);
  for (var i = block * BLOCK + thread; i < min(p.n, (block + 1u) * BLOCK); i = i + 256u) { total = wide_add(total, wide(a[p.at[0].x + i])); }
  total = sum_all(total, thread);
  if (thread == 0u && block * BLOCK < p.n) { sums[p.at[0].w / 2u + block] = total; }
}
// a: n pairs
@compute @workgroup_size(256)
fn sum_sums(@builtin(local_invocation_index) thread: u32) {
  var total = wide(0.0);
  for (var i = thread; i < p.n; i = i + 256u) { total = wide_add(total, Wide(a[p.at[0].x + 2u * i], a[p.at[0].x + 2u * i + 1u])); }
  total = sum_all(total, thread);
  if (thread == 0u) { y[p.at[0].z] = narrow(total); }
}
