import { expect, test } from "@jest/globals";
import { device, packSequences, scope } from "../../lib/index.js";
import { lively, llama } from "../models.js";

test("packed layers give the bits of the weights as they are now, are packed once for all who want them, and then are gone", async () => {
  const on = await device("cpu", { threads: 2 });
  const model = await lively(llama, on);
  const bits = async () => {
    using hidden = scope(() => model.hidden(packSequences([[1, 2, 3]])));
    return Buffer.from((await hidden.read()).buffer).toString("hex");
  };
  const before = await bits();
  const { current } = on.memory();
  const first = model.packWeights();
  const held = on.memory().current;
  expect(held).toBeGreaterThan(current);
  const second = model.packWeights();
  expect(on.memory().current).toBe(held);
  expect(await bits()).toBe(before);

  const weight = model.parameter("layers.0.q.weight");
  weight.value.write(((await weight.value.read()) as Float32Array).map((x) => -x));
  weight.changed();
  const after = await bits();
  expect(after).not.toBe(before);
  const third = model.packWeights();
  expect(on.memory().current).toBe(held);
  expect(await bits()).toBe(after);
  for (const panels of [first, second, third]) panels[Symbol.dispose]();
  expect(on.memory().current).toBe(current);
  expect(await bits()).toBe(after);
  model.dispose();
  await on.close();
});
