// What the kernels of attention share: where a workgroup's block lies, and the token rows of positions in a chain.
struct Params {
  at: array<vec4<u32>, 2>, zero: u32,
  N: u32, B: u32, H: u32, G: u32, D: u32, has_prefix: u32,
  q_row: u32, k_row: u32, v_row: u32, do_row: u32, offsets_at: u32, prefix_at: u32, tables_at: u32,
  scale: f32,
}
@group(0) @binding(8) var<uniform> p: Params;
// offsets [B+1], prefix [B] and the tables of chains.wgsl, one after another
@group(0) @binding(0) var<storage, read> map: array<u32>;

fn offset(b: u32) -> u32 { return u32(clamp(bitcast<i32>(map[p.offsets_at + b]), 0, i32(p.N))); }
fn length(b: u32) -> u32 { return max(offset(b), offset(b + 1u)) - offset(b); }
fn base(b: u32) -> u32 { return map[p.tables_at + b]; }
// the sequence before, or an index of none
fn before(b: u32) -> u32 {
  if (p.has_prefix == 0u) { return p.B; }
  let c = map[p.prefix_at + b];
  return select(p.B, c, c < b);
}

struct Block { b: u32, index: u32, there: bool } // the index-th block of a sequence
// table 1: of queries, 2: of keys
fn block_of(number: u32, table: u32) -> Block {
  let at = p.tables_at + table * (p.B + 1u);
  if (p.B == 0u || number >= map[at + p.B]) { return Block(0u, 0u, false); }
  var low = 0u;
  var high = p.B - 1u;
  while (low < high) { // the first sequence whose blocks end after it
    let middle = (low + high) / 2u;
    if (map[at + middle + 1u] > number) { high = middle; } else { low = middle + 1u; }
  }
  return Block(low, number - map[at + low], true);
}

// the token row of a position in the chain that ends with b
fn token_at(b: u32, position: u32) -> u32 {
  var owner = b;
  while (owner < p.B && position < base(owner)) { owner = before(owner); }
  if (owner >= p.B) { return 0u; } // prefix was refused: outputs will be NaN
  return min(offset(owner) + position - base(owner), p.N - 1u);
}
