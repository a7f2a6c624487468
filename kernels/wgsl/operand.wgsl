// What a kernel reads through operand(i), in the dtype that it has: f32.
@group(0) @binding(0) var<storage, read> operands: array<f32>;
fn operand(i: u32) -> f32 { return operands[i]; }
