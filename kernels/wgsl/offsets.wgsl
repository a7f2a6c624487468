// Packed sequences. The file of the kernel declares the parameters p and `offsets` [B+1], whose place is p.at[0].w.
fn offset(b: u32) -> u32 { return u32(clamp(offsets[p.at[0].w + b], 0, i32(p.N))); }
// the sequence of a token: the first that ends after it
fn owner(token: u32) -> u32 {
  var low = 0u;
  var high = p.B - 1u;
  while (low < high) {
    let middle = (low + high) / 2u;
    if (offset(middle + 1u) > token) { high = middle; } else { low = middle + 1u; }
  }
  return low;
}
