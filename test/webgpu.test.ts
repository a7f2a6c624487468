import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { device, type Device } from "../lib/index.js";
import { allTruths, casesOf, expectBits, holdToGradient, holdToLossGradients, holdToReference, runOn, sizes } from "./hold.js";
import { seed } from "./random.js";

// What the WebGPU device must have; every other op of the list is one that it says it lacks.
const OPS = ["add", "sub", "mul", "scale", "clamp", "accumulate", "fill", "sum", "sequenceSum", "sequenceSumGrad", "tokenRewards"];
OPS.push("gae", "gaePadded", "policyLoss", "valueLoss", "preferenceLoss");
OPS.push("logprob", "logprobGrad", "linearLogprob", "linearLogprobGrad", "linearPolicyLoss");
OPS.push("attention", "attentionGrad");

const truths = await allTruths();

/** With all that the adapter has; on the plain paths; with bindings so small that heads, logits and long tensors are split. */
const ways = { full: {}, plain: { features: [] }, split: { maxBinding: 32768 } };

let missing: string | undefined;
const devices: Record<string, Device> = {};
try {
  for (const [name, options] of Object.entries(ways)) devices[name] = await device("webgpu", options);
} catch (error) {
  missing = (error as Error).message;
}

if (missing && !process.env.CI) {
  test("the WebGPU device was not tested", () => console.warn(`Not run: every test of the WebGPU device. ${missing}`));
} else {
  beforeAll(() => {
    if (missing) throw new Error(missing);
    console.log(`seed ${seed}, adapter ${devices.full.isa}`);
  });
  afterAll(() => Promise.all(Object.values(devices).map((on) => on.close())));

  test("has the ops that it must have", () => {
    expect(truths.map(({ op }) => op).filter((op) => devices.full.has(op))).toEqual(truths.map(({ op }) => op).filter((op) => OPS.includes(op)));
    expect(OPS.filter((op) => !devices.full.has(op))).toEqual([]);
  });

  describe.each(truths.filter(({ op }) => OPS.includes(op)).map((entry) => [entry.op, entry] as const))("%s", (name, entry) => {
    test.each(Object.keys(ways))("equals its f64 reference (%s)", (way) => holdToReference(devices[way], entry));
    test("has the same bits on every run, with and without the adapter's features", async () => {
      for (const inputs of casesOf(entry)) {
        const wanted = await runOn(devices.full, entry, inputs);
        for (const way of ["full", "plain"]) expectBits(await runOn(devices[way], entry, inputs), wanted, `${name} (${sizes(inputs)}), ${way}`);
      }
    });
    if (entry.gradient) test("has the gradient of its reference", () => holdToGradient(devices.full, entry));
    if (entry.gradients) test("returns the gradient of its loss", () => holdToLossGradients(devices.full, entry));
  });
}
