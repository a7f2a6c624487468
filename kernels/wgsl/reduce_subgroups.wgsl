// reduce.wgsl for adapters with subgroups. A maximum has no order, so its bits are the same. The
// driver decides how threads fall into subgroups, so each subgroup takes the next free place.
var<workgroup> shared_wide: array<Wide, 256>;
var<workgroup> shared_max: array<f32, 256>;
var<workgroup> places: atomic<u32>;

fn sum_all(x: Wide, thread: u32) -> Wide {
  workgroupBarrier();
  shared_wide[thread] = x;
  for (var reach = 128u; reach > p.zero; reach = reach / 2u) {
    workgroupBarrier();
    if (thread < reach) { shared_wide[thread] = wide_add(shared_wide[thread], shared_wide[thread + reach]); }
  }
  workgroupBarrier();
  return shared_wide[0];
}

fn max_all(x: f32, thread: u32) -> f32 {
  workgroupBarrier();
  if (thread == 0u) { atomicStore(&places, 0u); }
  workgroupBarrier();
  let most = subgroupMax(x);
  if (subgroupElect()) { shared_max[atomicAdd(&places, 1u)] = most; }
  workgroupBarrier();
  var result = shared_max[0];
  for (var i = 1u; i < atomicLoad(&places); i = i + 1u) { result = max(result, shared_max[i]); }
  return result;
}
