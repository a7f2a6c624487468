import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "@jest/globals";
import { kernelsHash, receipts } from "../lib/cli/receipts.js";

test("an op is verified where each case that its receipt wants held, on the kernels that are here", async () => {
  const folder = await mkdtemp(join(tmpdir(), "rlhf-receipts-"));
  const none = "not yet verified on a GPU";
  const row = (name: string, holds: boolean, output = "y") => ({
    op: "token_rewards",
    case: name,
    dtype: "float32",
    output,
    holds,
  });
  const told = async (checks: object[], more: object = {}) => {
    const receipt = {
      kernels: kernelsHash(),
      device: { name: "a GPU" },
      checks,
      wanted: { token_rewards: { float32: ["one", "two"] } },
      ...more,
    };
    await writeFile(join(folder, "cuda-gpu.json"), JSON.stringify(receipt));
    return receipts(folder)("tokenRewards", ["f32"]);
  };
  expect(await told([row("one", true), row("two", true)])).toBe("verified on a GPU (f32)");
  expect(await told([row("one", true)])).toBe(none);
  expect(await told([row("one", true), row("two", true), row("two", false, "kl")])).toBe(none);
  expect(await told([row("one", true), row("two", true)], { wanted: {} })).toBe(none);
  expect(await told([row("one", true), row("two", true)], { kernels: "others" })).toBe(none);
  await rm(folder, { recursive: true });
});
