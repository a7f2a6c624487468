import { z } from "zod";
import { whole } from "../options.js";

// What algorithms learn from, and the options that say how much of it a step takes.

/** Options of learning from texts. */
export const textOptions = {
  batchTokens: whole(1).default(1024).describe("tokens of a step"),
  sequenceLength: whole(1).default(128).describe("tokens of a sequence at most"),
};

/** Options of learning from comparisons. */
export const comparisonOptions = {
  epochs: whole(1).default(2).describe("passes over the comparisons"),
  batch: whole(1).default(4).describe("comparisons of a step: all of a prompt are one"),
  heldOut: z.number().min(0).lt(1).default(0.1).describe("share of the comparisons that judges the model"),
  softLabels: z
    .boolean()
    .default(true)
    .describe("learn from the share of annotators who agree; else from their majority, and nothing of a tie"),
};

/** Options of learning from samples for prompts. */
export const promptOptions = {
  rolloutBatch: whole(1).default(64).describe("completions of an update"),
  samples: whole(1).default(4).describe("completions of each prompt, which is computed once for them"),
};
