export { device, type Device, type DeviceKind, type DeviceOptions } from "./device/device.js";
export { math } from "./device/native.js";
export { scope, Tensor } from "./tensor/tensor.js";
export { Parameter, Tape } from "./tensor/tape.js";
export type { Input } from "./tensor/op.js";
export * as ops from "./tensor/ops/index.js";
