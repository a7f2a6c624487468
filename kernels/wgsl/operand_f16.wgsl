// What a kernel reads through operand(i), in the dtype that it has: f16, on an adapter with shader-f16.
@group(0) @binding(0) var<storage, read> operands: array<f16>;
fn operand(i: u32) -> f32 { return f32(operands[i]); }
