import { PlannedDevice } from "../lib/device/planned.js";
import { ranking, rewardModel, sft, Transformer, type Device } from "../lib/index.js";
import type { Prepared } from "./kernels.js";
import { interleaved } from "./measure.js";
import { configOf, endless, ids, once, shapes, timed, type Shape } from "./models.js";
import type { Sharing } from "./result.js";

// A training step that computes a prompt once for all its completions, beside a step that computes
// it again for each. The first should be faster by the ratio of their FLOPs.

const COMPLETIONS = 8;

/**
 * The kind of step: a language model, whose head sees only completions, or a reward model, which
 * has almost no head.
 */
type Trained = "SFT step" | "reward step";

function step(
  on: Device,
  trained: Trained,
  shape: Shape,
  completions: number,
  sharePrompts: boolean,
): Omit<Prepared, "cost"> {
  const { batch, prompt, response, vocabulary } = shape;
  const model = Transformer.random(configOf(shape), trained === "SFT step" ? "logits" : "score", on, 0);
  const learner = endless({ model }, 1e-4);
  const groups = Array.from({ length: batch / completions }, (_, g) =>
    Array.from({ length: completions }, (_, i) => ({
      prompt: ids(prompt, vocabulary, g + 1),
      completion: ids(response, vocabulary, batch + g * completions + i),
    })),
  );
  const options = { microBatch: batch, sharePrompts };
  const run = () =>
    once(
      trained === "SFT step"
        ? sft(model, () => groups.flat(), options, learner)
        : rewardModel(model, () => groups.map(ranking), { ...options, steps: 1, centerCoef: 0 }, learner),
    );
  return { timer: timed(run), dispose: () => (learner[Symbol.dispose](), model.dispose()) };
}

/** Prepares the step. Its FLOPs are counted on a device that runs nothing. */
export async function sharingStep(
  on: Device,
  trained: Trained,
  shape: Shape,
  completions: number,
  sharePrompts: boolean,
): Promise<Prepared> {
  await using planned = new PlannedDevice(on.threads, { flops: 1, bandwidth: 1, call: 0 });
  const counted = step(planned, trained, shape, completions, sharePrompts);
  planned.workDone();
  await counted.timer(1);
  counted.dispose();
  return {
    ...step(on, trained, shape, completions, sharePrompts),
    cost: { flops: planned.workDone().flops, read: 0, write: 0 },
  };
}

export interface SharingRow {
  name: string;
  shape: string;
  measure(on: Device): Promise<Sharing>;
}

export const sharingRows: SharingRow[] = (["demo", "gpt2"] as const).flatMap((model) =>
  (["SFT step", "reward step"] as const).map((name) => {
    const half = (shapes[model].prompt + shapes[model].response) / 2;
    const shape = { ...shapes[model], prompt: half, response: half }; // a prompt is as long as a completion
    const row = { name, shape: `${model} (${shape.batch / COMPLETIONS} x ${half} + ${COMPLETIONS} x ${half} tokens)` };
    return {
      ...row,
      async measure(on) {
        const both = [
          await sharingStep(on, name, shape, COMPLETIONS, true),
          await sharingStep(on, name, shape, COMPLETIONS, false),
        ];
        const [shared, alone] = await interleaved(both.map(({ timer }) => timer));
        for (const one of both) one.dispose();
        return {
          ...row,
          threads: on.threads,
          ms: shared.ms,
          alone: alone.ms,
          work: both[1].cost.flops / both[0].cost.flops,
        };
      },
    };
  }),
);
