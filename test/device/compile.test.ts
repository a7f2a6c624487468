// The compile gate: nvcc makes every CUDA kernel for sm_80 and sm_90a (those of a Hopper for it
// alone) without a spill, within the registers that its KERNEL line leaves it, with no static
// shared memory, and no product of a warpgroup made to wait for the one before. Needs nvcc, not a
// GPU; where there is none, it says so and stops.
import { execFile, spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, test } from "@jest/globals";
import { root } from "../../lib/device/native.js";

const nvcc = process.env.RLHF_NVCC || "nvcc";
const there = spawnSync(nvcc, ["--version"]).status === 0;
const files = readdirSync(join(root, "kernels/cuda")).filter((name) => name.endsWith(".cu"));

/** One kernel for one architecture. */
interface Compiled {
  kernel: string;
  architecture: string;
  registers: number;
  spilled: number;
  staticShared: number;
}

/** What ptxas said, and the threads and blocks a multiprocessor that each kernel states. */
function parse(log: string): { compiled: Compiled[]; bounds: Map<string, { threads: number; blocks: number }> } {
  const compiled: Compiled[] = [];
  const bounds = new Map<string, { threads: number; blocks: number }>();
  let entry = "";
  for (const line of log.split("\n")) {
    const begun = /Compiling entry function '(\w+)' for '(\w+)'/.exec(line);
    if (begun)
      compiled.push({ kernel: begun[1], architecture: begun[2], registers: NaN, spilled: NaN, staticShared: 0 });
    const last = compiled.at(-1)!;
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spills) last.spilled = Number(spills[1]) + Number(spills[2]);
    const used = /Used (\d+) registers/.exec(line);
    if (used) last.registers = Number(used[1]);
    const shared = /(\d+)(?:\+\d+)? bytes smem/.exec(line);
    if (shared) last.staticShared = Number(shared[1]);
    entry = /^\.visible \.entry (\w+)/.exec(line)?.[1] ?? entry;
    const threads = /^\.maxntid (\d+)/.exec(line);
    if (threads) bounds.set(entry, { threads: Number(threads[1]), blocks: 1 });
    const blocks = /^\.minnctapersm (\d+)/.exec(line);
    if (blocks) bounds.get(entry)!.blocks = Number(blocks[1]);
  }
  return { compiled, bounds };
}

const describeThere = there ? describe : describe.skip;
if (!there) console.log(`the CUDA kernels were not compiled: ${nvcc} was not found`);

describeThere("nvcc compiles", () => {
  const rows: string[] = [];
  test.each(files)(
    "%s without spills, within its registers",
    async (file) => {
      const out = join(root, "build/cuda", file.replace(/\.cu$/, ".fatbin"));
      const definitions = [`-DNVCC=${nvcc}`, `-DSOURCE=${join(root, "kernels/cuda", file)}`, `-DOUT=${out}`];
      await promisify(execFile)("cmake", [...definitions, "-P", join(root, "native/cuda/fatbin.cmake")], {
        maxBuffer: 1 << 26,
      });
      const log = readFileSync(`${out}.log`, "utf8");
      const { compiled, bounds } = parse(log);
      expect(new Set(compiled.map(({ architecture }) => architecture))).toEqual(new Set(["sm_80", "sm_90a"]));
      const hoppers = [...bounds.keys()].filter((kernel) => kernel.endsWith("_hopper"));
      expect(compiled.length).toBe(2 * bounds.size - hoppers.length);
      expect(log).not.toMatch(/wgmma.*serialized|setmaxnreg.*ignored/i);
      for (const { kernel, architecture, registers, spilled, staticShared } of compiled) {
        const { threads, blocks } = bounds.get(kernel)!;
        const most = Math.min(255, Math.floor(65536 / (threads * blocks)));
        rows.push(
          `${kernel.padEnd(36)} ${architecture.padEnd(7)} ${registers} of ${most} registers, ${threads} threads x ${blocks}`,
        );
        const what = `${kernel} for ${architecture}`;
        expect(`${what}: ${spilled} bytes spilled, ${staticShared} bytes of static shared memory`).toBe(
          `${what}: 0 bytes spilled, 0 bytes of static shared memory`,
        );
        expect(registers).toBeGreaterThan(0);
        expect(registers).toBeLessThanOrEqual(most);
      }
    },
    900_000,
  );
  test("registers", () => {
    expect(rows.length).toBeGreaterThan(0);
    console.log(rows.sort().join("\n"));
  });
});
