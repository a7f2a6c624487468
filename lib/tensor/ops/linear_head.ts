import { optionsOf, run, shapeOfInput, type Input } from "../op.js";
import { endOfTape } from "../tape.js";
import { arrayOf, type Tensor } from "../tensor.js";
import { zerosLike, type Logprobs } from "./logprob.js";
import { resolved, type Loss, type PolicyLossOptions } from "./policy_loss.js";

/** What a loss from the hidden state gives. */
export interface TokenLoss extends Loss {
  /** f32 [M], nats. */
  logp: Tensor;
  /** f32 [M], nats: of the distribution that each token is of. */
  entropy: Tensor;
}

/**
 * Log-probs of tokens straight from the hidden state and the head: logits exist only as a tile, also in the backward
 * pass, which recomputes them from lse.
 *
 * @param h      f32 [N, C], hidden state
 * @param weight f32 [V, C], head; on a CPU it may be bf16
 * @param rows   int32 [M]: pair m is (h[rows[m]], y[m])
 * @param y      int32 [M], each in [0, V)
 * @param options `temperature` divides the logits: from 2^-127 to 2^120, by default 1
 * @throws RangeError `SHAPE` `ID` `RANGE`, TypeError `ARGUMENT`
 */
export function linearLogprob(
  h: Input,
  weight: Input,
  rows: Input,
  y: Input,
  options: { temperature?: number } = {},
): Logprobs {
  const { temperature = 1, ...unknown } = optionsOf("linearLogprob", options);
  const { logp, lse, entropy } = run(
    "linearLogprob",
    { ...unknown, h, weight, rows, y, temperature },
    (d, t, wants) => {
      const { h, weight, rows, y, logp, lse, entropy } = t;
      const { dh } = run("linearLogprobGrad", {
        h,
        weight,
        rows,
        y,
        logp,
        lse,
        entropy,
        dlogp: d.logp ?? zerosLike(logp),
        dentropy: d.entropy,
        temperature,
        dh: wants.needs("h"),
        dweight: wants.into("weight"),
      });
      return { h: dh };
    },
  );
  return { logp, lse, entropy };
}

/**
 * The clipped PPO loss of `policyLoss`, straight from the hidden state and the head: logits of a
 * block of rows are computed once, turned into their gradient in place, and never stored beyond it.
 *
 * @param h          f32 [N, C], hidden state
 * @param weight     f32 [V, C], head
 * @param rows       int32 [M]: pair m is (h[rows[m]], y[m])
 * @param y          int32 [M], the sampled tokens
 * @param oldLogp    f32 [M], of the policy that sampled
 * @param advantages f32 [M]
 * @param options    `temperature` divides the logits, above 0
 * @returns loss f32 [1], which ends the tape; logp and entropy f32 [M], nats; stats f64 [12]
 * @throws RangeError `SHAPE` `ID` `OFFSETS` `RANGE`, TypeError `CHOICE` `ARGUMENT`
 */
export function linearPolicyLoss(
  h: Input,
  weight: Input,
  rows: Input,
  y: Input,
  oldLogp: Input,
  advantages: Input,
  options: PolicyLossOptions & { temperature?: number },
): TokenLoss {
  const { temperature = 1, ...rest } = optionsOf("linearPolicyLoss", options);
  return fused({ h, weight, rows, y, oldLogp, advantages, temperature, ...resolved(rest) });
}

/**
 * Negative log-likelihood of tokens from the hidden state and the head, as `linearPolicyLoss` with the loss -log p.
 * @param h      f32 [N, C], hidden state
 * @param weight f32 [V, C], head
 * @param rows   int32 [M]: pair m is (h[rows[m]], y[m])
 * @param y      int32 [M], the tokens to predict
 * @returns loss f32 [1], which ends the tape; logp and entropy f32 [M], nats; stats as for the policy loss
 * @throws RangeError `SHAPE` `ID` `OFFSETS` `RANGE`, TypeError `CHOICE` `ARGUMENT`
 */
export function linearNll(
  h: Input,
  weight: Input,
  rows: Input,
  y: Input,
  options: Pick<PolicyLossOptions, "cuSeqlens" | "denominator" | "aggregation" | "mask" | "scale" | "stats">,
): TokenLoss {
  const ids = Array.isArray(y) ? arrayOf("linearNll: y", y, "i32", "ID") : y; // before there are as many ones
  const ones = new Float32Array(shapeOfInput("linearNll: y", ids).reduce((size, dim) => size * dim, 1)).fill(1);
  return fused({
    h,
    weight,
    rows,
    y: ids,
    oldLogp: ones,
    advantages: ones,
    temperature: 1,
    ...resolved(optionsOf("linearNll", options), "log-likelihood"),
  });
}

function fused(args: Parameters<typeof run>[1]) {
  const { loss, logp, entropy, stats } = run(
    "linearPolicyLoss",
    { ...args, dh: true, dweight: { into: "weight" } },
    (d, t) => {
      endOfTape("linearPolicyLoss", d);
      return { h: t.dh };
    },
  );
  return { loss, logp, entropy, stats };
}
