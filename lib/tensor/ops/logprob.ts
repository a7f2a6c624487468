import { optionsOf, run, type Input } from "../op.js";
import { Tensor } from "../tensor.js";

/** What the log-prob ops give. */
export interface Logprobs {
  /** f32 [M], log softmax(logits / temperature)[y], nats, never above 0 */
  logp: Tensor;
  /** f32 [M], log sum exp(logits / temperature) */
  lse: Tensor;
  /** f32 [M], nats: the entropy of each row */
  entropy: Tensor;
}

/**
 * Log-probs of tokens, given the logits.
 *
 * @param logits f32 [M, V]; -inf is legal
 * @param y      int32 [M], each in [0, V)
 * @param options `temperature` divides the logits: from 2^-127 to 2^120, by default 1
 * @throws RangeError `SHAPE` `ID` `RANGE`, TypeError `ARGUMENT`
 */
export function logprob(logits: Input, y: Input, options: { temperature?: number } = {}): Logprobs {
  const { temperature = 1, ...unknown } = optionsOf("logprob", options);
  const { logp, lse, entropy } = run(
    "logprob",
    { ...unknown, logits, y, temperature },
    (d, { logits, y, logp, lse, entropy }) => {
      const { dlogits } = run("logprobGrad", {
        logits,
        y,
        logp,
        lse,
        entropy,
        dlogp: d.logp ?? zerosLike(logp),
        dentropy: d.entropy,
        temperature,
      });
      return { logits: dlogits };
    },
  );
  return { logp, lse, entropy };
}

/** Zeros of the same shape, for a gradient that does not come. */
export const zerosLike = (x: Tensor) => run("fill", { value: 0, y: Tensor.empty(x.shape, "f32", x.device) }).y;
