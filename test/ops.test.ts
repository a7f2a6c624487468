import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { specs } from "../lib/device/ops.js";
import type { Device } from "../lib/index.js";
import {
  allTruths,
  casesOf,
  expectBits,
  holdToGradient,
  holdToLossGradients,
  holdToReference,
  narrowed,
  runOn,
  sizes,
} from "./hold.js";
import { everyCpu } from "./models.js";
import { seed } from "./random.js";

const truths = await allTruths();
const devices: Device[] = [];
beforeAll(async () => {
  console.log(`seed ${seed}`);
  devices.push(...(await everyCpu([1, 2, 3])));
});
afterAll(() => Promise.all(devices.map((d) => d.close())));

test("every op has a truth, but for the measurements of the machine's limits", () => {
  const tried = new Set(truths.map(({ op }) => op));
  expect([...specs.keys()].filter((name) => !tried.has(name) && !name.startsWith("limit"))).toEqual([]);
});

describe.each(truths.map((entry) => [entry.op, entry] as const))("%s", (name, entry) => {
  test("equals its f64 reference", () => holdToReference(devices[0], entry));

  test("has the same bits on every instruction set and number of threads", async () => {
    const scalar = devices.find((d) => d.isa === "scalar" && d.threads === 1)!;
    for (const inputs of casesOf(entry)) {
      const wanted = await runOn(scalar, entry, inputs);
      for (const on of devices)
        expectBits(
          await runOn(on, entry, inputs),
          wanted,
          `${name} (${sizes(inputs)}) on ${on.isa} with ${on.threads} threads`,
        );
    }
  });

  if (specs.get(name)!.dtypes.cpu.includes("bf16"))
    test("of bf16 weights has the bits of the widened ones, on every instruction set and number of threads", async () => {
      const scalar = devices.find((d) => d.isa === "scalar" && d.threads === 1)!;
      for (const drawn of casesOf(entry)) {
        const inputs = narrowed(scalar, entry, drawn);
        const wanted = await runOn(scalar, entry, inputs);
        for (const on of devices)
          expectBits(
            await runOn(on, entry, inputs, true),
            wanted,
            `${name} (${sizes(inputs)}) on ${on.isa} with ${on.threads} threads`,
          );
      }
    });

  if (entry.gradient) test("has the gradient of its reference", () => holdToGradient(devices[0], entry));
  if (entry.gradients) test("returns the gradient of its loss", () => holdToLossGradients(devices[0], entry));
});
