// Packed sequences as attention sees them. Sequence b, prefix[b] before it, and so on, form a chain
// of growing positions.
//   tables [3][B+1]: base (position of the sequence's first token), first block of queries, first block of keys
//   The last entry of the two tables of blocks is how many there are.
struct ChainParams {
  at: array<vec4<u32>, 2>, zero: u32,
  N: u32, B: u32, has_prefix: u32, query_block: u32, key_block: u32,
}
@group(0) @binding(8) var<uniform> p: ChainParams;
@group(0) @binding(0) var<storage, read> offsets: array<i32>;
@group(0) @binding(1) var<storage, read> prefix: array<i32>;
@group(0) @binding(2) var<storage, read_write> tables: array<u32>;

fn offset(b: u32) -> u32 { return u32(clamp(offsets[p.at[0].x + b], 0, i32(p.N))); }

// one thread: sequences are few beside tokens
@compute @workgroup_size(1)
fn chains() {
  let at = p.at[0].z;
  let row = p.B + 1u;
  var queries = 0u;
  var keys = 0u;
  for (var b = 0u; b < p.B; b = b + 1u) {
    var base = 0u;
    if (p.has_prefix != 0u) {
      let before = prefix[p.at[0].y + b];
      if (before >= 0 && before < i32(b)) {
        let c = u32(before);
        base = tables[at + c] + max(offset(c), offset(c + 1u)) - offset(c);
      }
    }
    let count = max(offset(b), offset(b + 1u)) - offset(b);
    tables[at + b] = base;
    tables[at + row + b] = queries;
    tables[at + 2u * row + b] = keys;
    queries = queries + (count + p.query_block - 1u) / p.query_block;
    keys = keys + (count + p.key_block - 1u) / p.key_block;
  }
  tables[at + row + p.B] = queries;
  tables[at + 2u * row + p.B] = keys;
}
