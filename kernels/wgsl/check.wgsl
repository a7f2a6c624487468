// Arguments that hold ids or offsets, checked on the device. The first fault is latched:
//   faults [8]: kind (1 ids, 2 offsets, 3 prefix), op, argument, element, its value, limit, number of the
//     last call with a fault, slot of the first
//   then a slot for each call by its number: kind + 16 argument where it had a fault
// poison overwrites the outputs of a call with a fault. It runs after the op, in order, so the last
// such call is this one.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  N: u32, limit: i32, kind: u32, op: u32, argument: u32, call: u32, slot: u32,
}
struct PoisonParams {
  at: array<vec4<u32>, 2>, zero: u32,
  words: u32, call: u32, pattern: u32,
}
@group(0) @binding(8) var<uniform> p: Params;
@group(0) @binding(8) var<uniform> pp: PoisonParams;
@group(0) @binding(0) var<storage, read> x: array<i32>;
@group(0) @binding(1) var<storage, read_write> faults: array<atomic<u32>>;
@group(0) @binding(0) var<storage, read> latched: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(256)
fn check(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.x + group.y * groups.x) * 256u + thread;
  if (i >= p.N) { return; }
  let value = x[p.at[0].x + i];
  var bad = false;
  switch (p.kind) {
    case 1u: { bad = value < 0 || value >= p.limit; }
    case 2u: {
      bad = (i == 0u && value != 0) || (i == p.N - 1u && value != p.limit);
      if (i > 0u && x[p.at[0].x + i - 1u] > value) { bad = true; }
    }
    default: { bad = value < -1 || value >= i32(i); }
  }
  if (!bad) { return; }
  atomicStore(&faults[p.at[0].y + 6u], p.call);
  atomicMax(&faults[p.at[0].y + 8u + p.slot], p.kind + 16u * p.argument);
  loop {
    let tried = atomicCompareExchangeWeak(&faults[p.at[0].y], 0u, p.kind);
    if (tried.exchanged) {
      atomicStore(&faults[p.at[0].y + 1u], p.op);
      atomicStore(&faults[p.at[0].y + 2u], p.argument);
      atomicStore(&faults[p.at[0].y + 3u], i);
      atomicStore(&faults[p.at[0].y + 4u], bitcast<u32>(value));
      atomicStore(&faults[p.at[0].y + 5u], u32(p.limit));
      atomicStore(&faults[p.at[0].y + 7u], p.slot);
      break;
    }
    if (tried.old_value != 0u) { break; }
  }
}

@compute @workgroup_size(256)
fn poison(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (latched[pp.at[0].x + 6u] != pp.call) { return; }
  let begin = (group.x + group.y * groups.x) * 65536u;
  for (var i = begin + thread; i < min(pp.words, begin + 65536u); i = i + 256u) { y[pp.at[0].y + i] = pp.pattern; }
}
