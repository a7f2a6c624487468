// Reductions over a workgroup of 256 threads, each in one fixed order. Every thread gets the
// result. Loops end at p.zero, not 0, so that a compiler leaves them rolled: a barrier is dear to
// unroll.
var<workgroup> shared_wide: array<Wide, 256>;
var<workgroup> shared_max: array<f32, 256>;

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
  shared_max[thread] = x;
  for (var reach = 128u; reach > p.zero; reach = reach / 2u) {
    workgroupBarrier();
    if (thread < reach) { shared_max[thread] = max(shared_max[thread], shared_max[thread + reach]); }
  }
  workgroupBarrier();
  return shared_max[0];
}
