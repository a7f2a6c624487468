// Every allocation of the addon fails once, and then all from there on: a call says MEMORY or does
// what it should, and the process goes on.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "@jest/globals";
import { root } from "../../lib/device/native.js";
import { child } from "../child.js";

const failing = join(root, "build/simulator/Release/rlhf_failing.node");

/**
 * What is done while allocations fail; `step` takes what throws with a code for an answer, and
 * keeps what comes out.
 */
const SCRIPT = `
  const { failAllocations } = require(addon);
  const six = Float32Array.of(1, 2, 3, 4, 5, 6);
  const text = (data) => Array.from(data).join(" ");
  async function script() {
    const got = {};
    let on;
    const step = async (name, work) => {
      try {
        const value = await work();
        if (value !== undefined) got[name] = text(value);
      } catch ({ code, message, name: kind }) {
        // an error that no read told, since the read had no memory, is that of closing
        if (code !== "MEMORY" && code !== (name === "open" ? "THREADS" : name === "close" ? "ID" : "")) throw new Error(name + ": " + kind + " " + code + " " + message);
        got[name] = code;
      }
    };
    await step("open", async () => void (on = await rlhf.device("cpu", { threads: 2, isa: "scalar" })));
    if (!on) return got;
    const t = {};
    const use = (...names) => names.every((name) => t[name]);
    await step("x", () => void (t.x = rlhf.Tensor.from(six, [2, 3], on)));
    await step("w", () => void (t.w = rlhf.Tensor.from(Float32Array.from({ length: 120 }, (_, i) => i % 7), [40, 3], on)));
    await step("packed", () => use("w") && void (t.packed = rlhf.ops.pack(t.w)) || undefined);
    await step("y", () => use("x", "w") && void (t.y = rlhf.ops.linear(t.x, t.w)) || undefined);
    await step("attended", () => use("x") && void (t.o = rlhf.ops.attention(t.x.reshape([2, 1, 3]), t.x.reshape([2, 1, 3]), t.x.reshape([2, 1, 3]), Int32Array.of(0, 2))) || undefined);
    await step("bad", () => use("w") && void (t.bad = rlhf.ops.embedding(rlhf.Tensor.from(Int32Array.of(99), [1], on), t.w)) || undefined);
    await step("recorded", () => use("x") && void (t.recorded = on.record(() => rlhf.scope(() => rlhf.ops.scale(rlhf.ops.add(t.x, t.x), 2)))) || undefined);
    await step("run", () => use("recorded") ? void t.recorded.run() : undefined);
    for (const name of ["x", "y", "o"]) await step("read " + name, async () => use(name) ? await t[name].read() : undefined);
    await step("read recorded", async () => use("recorded") ? await t.recorded.result.read() : undefined);
    await step("read bad", async () => { try { if (use("bad")) return await t.bad.read(); } catch (error) { if (error.code === "ID") return [error.code]; throw error; } });
    await step("memory", () => { const { current, held } = on.memory(); if (!(current >= 0 && held >= current)) throw new Error("counts"); });
    await step("peak", () => void on.resetPeak());
    for (const one of Object.values(t)) (one.dispose ?? one[Symbol.dispose]).call(one);
    await step("close", () => on.close());
    return got;
  }
`;

(process.platform === "linux" && existsSync(failing) ? test : test.skip)(
  "no allocation that fails ends the process or makes a number wrong",
  () => {
    const program = `
    ${SCRIPT}
    const good = await script();
    const before = failAllocations(0, 0);
    await script();
    const made = failAllocations(0, 0) - before;
    const counts = { MEMORY: 0, THREADS: 0, runs: 0 };
    for (const many of [1, 2 ** 40])
      for (let n = 1; n <= made; n += many === 1 ? 1 : 3) {
        failAllocations(n, many);
        let got;
        try { got = await script(); } finally { failAllocations(0, 0); }
        counts.runs++;
        for (const [name, value] of Object.entries(got)) {
          if (value in counts) counts[value]++;
          if (!/^[A-Z]+$/.test(value) && value !== good[name]) throw new Error(n + ": " + name + " is " + value + ", wanted " + good[name]);
        }
      }
    const again = await script();
    console.log(JSON.stringify({ made, counts, same: JSON.stringify(again) === JSON.stringify(good), good }));`;
    const { out, error, end } = child(program, { env: { RLHF_ADDON: failing } });
    expect({ end, error }).toEqual({ end: 0, error: "" });
    const { made, counts, same, good } = JSON.parse(out) as {
      made: number;
      counts: Record<string, number>;
      same: boolean;
      good: Record<string, string>;
    };
    expect([same, made > 60, counts.MEMORY > made / 2, counts.THREADS > 0, good["read x"], good["read bad"]]).toEqual([
      true,
      true,
      true,
      true,
      "1 2 3 4 5 6",
      "ID",
    ]);
    console.log(`${made} allocations, ${counts.runs} runs, ${counts.MEMORY} times MEMORY`);
  },
);
