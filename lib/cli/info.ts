import { cpus } from "node:os";
import { device } from "../device/device.js";
import { fmaPeak, readBandwidth } from "../device/limits.js";
import { native } from "../device/native.js";

/** The machine as the kernels see it. */
export async function info() {
  await using opened = await device("cpu");
  return {
    cpu: cpuName(),
    isa: opened.isa,
    isaAvailable: native.isaAvailable.split(" "),
    threads: opened.threads,
    fmaPeak: await fmaPeak(opened),
    readBandwidth: await readBandwidth(opened),
    lawVersion: native.lawVersion,
    devices: { cpu: "here", cuda: "not part of this build", webgpu: "not part of this build" },
  };
}

export const cpuName = () => cpus()[0]?.model.trim() ?? process.arch;
