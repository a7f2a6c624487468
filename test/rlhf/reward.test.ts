import { afterAll, beforeAll, expect, test } from "@jest/globals";
import {
  device,
  judge,
  Learner,
  rewardModel,
  scores,
  type Comparison,
  type Device,
  type Transformer,
} from "../../lib/index.js";
import { episodes, llama, lively } from "../models.js";
import { Random } from "../random.js";

// What is told of a reward model: it is right where it agrees with the majority, half right where there is none.

let on: Device;
let model: Transformer;
let units: Comparison[];
let higher: number[]; // of each unit
beforeAll(async () => {
  on = await device("cpu");
  model = await lively(llama, on, "score");
  units = Array.from({ length: 12 }, (_, i) => ({ episodes: episodes(new Random(`unit ${i}`), 2), pairs: [] }));
  const all = await scores(
    model,
    units.flatMap((unit) => unit.episodes),
  );
  higher = units.map((_, i) => (all[2 * i] > all[2 * i + 1] ? 0 : 1));
});
afterAll(() => on.close());

const chosen = (wins: boolean, label?: number, margin?: number) =>
  units.map((unit, i) => {
    const first = wins ? higher[i] : 1 - higher[i];
    return { ...unit, pairs: [{ chosen: first, rejected: 1 - first, label, margin }] };
  });

test.each([
  { wins: true, accuracy: 1 },
  { wins: false, accuracy: 0 },
  { wins: true, label: 0.2, accuracy: 0 },
  { wins: false, label: 0.2, accuracy: 1 },
  { wins: true, label: 0.5, accuracy: 0.5 },
  { wins: true, margin: 1000, accuracy: 1 },
])("%j", async ({ wins, label, margin, accuracy }) => {
  const compared = chosen(wins, label, margin);
  expect((await judge(model, compared)).accuracy).toBe(accuracy);
  const copy = await lively(llama, on, "score");
  for (const microBatch of [5, undefined]) {
    const still = { learningRate: 0, schedule: "constant" as const, warmup: 0, steps: 1 };
    using learner = new Learner({ model: copy }, still);
    for await (const metrics of rewardModel(copy, () => compared, { steps: 1, microBatch }, learner)) {
      expect(metrics.accuracy).toBe(accuracy);
      expect(metrics.difference > 0).toBe(wins);
    }
  }
  copy.dispose();
});
