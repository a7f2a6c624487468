import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import { device } from "../device/open.js";
import { fmaPeak, readBandwidth } from "../device/limits.js";
import { native } from "../device/native.js";
import { specs } from "../device/ops.js";
import { adapterName } from "../device/webgpu/open.js";
import { receipts } from "./receipts.js";
import { dtypes as webgpuDtypes } from "../device/webgpu/ops/index.js";

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
    devices: {
      cpu: "here",
      cuda: await gpuName().catch((error: Error) => error.message),
      webgpu: await adapterName().catch((error: Error) => error.message),
    },
  };
}

async function gpuName(): Promise<string> {
  await using opened = await device("cuda");
  return opened.isa;
}

/**
 * The processor by its name and, where the system tells, family and model: names in clouds do not
 * tell one generation from the next.
 */
export function cpuName(): string {
  const name = cpus()[0]?.model.trim() ?? process.arch;
  try {
    const text = readFileSync("/proc/cpuinfo", "utf8");
    const [family, model] = ["cpu family", "model"].map(
      (key) => text.match(new RegExp(`^${key}\\s*: (\\d+)$`, "m"))?.[1],
    );
    if (family && model) return `${name}, family ${family}, model ${model}`;
  } catch {}
  return name;
}

/**
 * Each op with the shapes that it takes and gives, the dtypes that each device has it at, and what
 * a real GPU said of its CUDA kernels.
 */
export function opList() {
  const shaped = ({ name, dimsText }: { name: string; dimsText: string }) => (dimsText ? `${name}[${dimsText}]` : name);
  const receipt = receipts();
  return [...specs.values()].map(({ name, arguments: all, dtypes }) => ({
    name,
    inputs: all.filter(({ kind }) => !kind.includes("out")).map(shaped),
    outputs: all.filter(({ kind }) => kind.includes("out") || kind.includes("add")).map(shaped),
    cpu: dtypes.cpu,
    webgpu: webgpuDtypes(name),
    cuda: dtypes.cuda,
    receipt: receipt(name, dtypes.cuda),
  }));
}
