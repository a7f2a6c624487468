// Sums per sequence: y[b] = sum of x[t] over its tokens, divided by their number if mean.
//   gradient: dx[t] = dy[b], divided by the number if mean
//   x, dx [N]; y, dy [B]; offsets [B+1]
//
// Plan: a workgroup per sequence, at twice f32's precision. The gradient: a thread per token, which
// finds its sequence by bisection.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  N: u32, B: u32, mean: u32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> offsets: array<i32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn sequence_sum(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let b = group.x + group.y * groups.x;
  if (b >= p.B) { return; }
  let begin = offset(b);
  let end = max(begin, offset(b + 1u));
  var total = wide(0.0);
  for (var i = begin + thread; i < end; i = i + 256u) { total = wide_add(total, wide(x[p.at[0].x + i])); }
  total = sum_all(total, thread);
  if (p.mean != 0u && end > begin) { total = wide_div(total, wide(f32(end - begin))); }
  if (thread == 0u) { y[p.at[1].x + b] = narrow(total); }
}

@compute @workgroup_size(256)
fn sequence_sum_grad(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.x + group.y * groups.x) * 256u + thread;
  if (i >= p.N) { return; }
  let b = owner(i);
  var d = x[p.at[0].x + b];
  if (p.mean != 0u) { d = d / f32(offset(b + 1u) - offset(b)); }
  y[p.at[1].x + i] = d;
}
