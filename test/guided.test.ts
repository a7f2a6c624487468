import { execFile } from "node:child_process";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";
import type { Found } from "./guided.js";
import { seed } from "./random.js";

// The readers of what others wrote, on inputs that are changed wherever the change reached new
// code. RLHF_FUZZ_RUNS: inputs of each.

const runs = Number(process.env.RLHF_FUZZ_RUNS ?? 500);
const readers = ["safetensors", "index", "config", "adapter", "adapterWeights", "tokenizer", "template"];
const files = ["prompts", "demonstrations", "comparisons", "completions", "yaml"];

test.each([...readers, ...files])(
  "%s: whatever reaches new code is read or refused",
  async (reader) => {
    const folder = await mkdtemp(join(tmpdir(), `rlhf-guided-${reader}-`));
    const arguments_ = [
      "--max-old-space-size=512",
      join(root, "dist/test/guided.js"),
      reader,
      `${runs}`,
      `${seed}`,
      folder,
    ];
    try {
      const { stdout } = await promisify(execFile)(process.execPath, arguments_, {
        timeout: 60_000 + 200 * runs,
        killSignal: "SIGKILL",
      });
      const found = JSON.parse(stdout) as Found;
      expect(found).not.toHaveProperty("fault");
      expect(found.taken + found.refused).toBe(runs);
      expect(Math.min(found.taken, found.refused, found.kept)).toBeGreaterThan(0);
    } catch (error) {
      const kept = `${folder}-failed`;
      await cp(folder, kept, { recursive: true });
      throw new Error(`RLHF_TEST_SEED=${seed}, reader ${reader}, the last input lies in ${kept}`, { cause: error });
    } finally {
      await rm(folder, { recursive: true });
    }
  },
  120_000 + 200 * runs,
);
