import { rangeError, typeError } from "../../device/errors.js";
import { optionsOf, run, shapeOfInput, type Input } from "../op.js";
import { Parameter } from "../parameter.js";
import { endOfTape } from "../tape.js";
import { Tensor } from "../tensor.js";
import type { Loss } from "./policy_loss.js";

/** Options of the preference losses. One that the form has no use for is refused. */
export interface PreferenceLossOptions {
  /**
   * `bradley-terry` (rewards), `dpo` (Rafailov et al. 2023), `ipo` (Azar et al. 2023; give it
   * log-probs averaged per token)
   */
  form: "bradley-terry" | "dpo" | "ipo";
  /** What the sum over pairs is divided by: pairs or rankings of the whole update. */
  denominator: number;
  /** dpo and ipo: f32 [M], the scores of the reference */
  refScores?: Input;
  /**
   * dpo: factor of the difference of log-ratios; ipo: its target is 1 / (2 beta). 0.1 by default,
   * as in TRL.
   */
  beta?: number;
  /** bradley-terry and dpo: f32 [P], how much better the chosen is (Touvron et al. 2023) */
  margin?: Input;
  /**
   * bradley-terry and dpo: f32 [P] in [0, 1], the probability that the chosen is preferred, e.g.
   * the share of annotators who agree
   */
  label?: Input;
  /** f32 [P]: weight of a pair, 1 / (K choose 2) in a ranking (Ouyang et al. 2022) */
  weight?: Input;
  /**
   * bradley-terry and dpo: share of the labels taken to be wrong (Mitchell 2023, conservative DPO),
   * in [0, 0.5].
   */
  labelSmoothing?: number;
  /** Coefficient of (chosen + rejected)^2 (Eisenstein et al. 2023). */
  centerCoef?: number;
  /** Factor of the loss and of its gradients. */
  scale?: number;
  /**
   * f64 [8], continued, sums over pairs: loss, chosen wins, difference, chosen, rejected, pairs,
   * probability of the chosen, 0
   */
  stats?: Tensor;
}

/**
 * The loss of comparisons with its gradient: pair p prefers scores[chosen[p]] to
 * scores[rejected[p]]. `bradley-terry`: -log sigmoid(s_c - s_r - margin); `dpo`: the same of beta
 * ((s_c - ref_c) - (s_r - ref_r)) - margin; `ipo`: ((s_c - ref_c) - (s_r - ref_r) - 1 / (2
 * beta))^2.
 *
 * @param scores   f32 [M]; a score may stand in many pairs
 * @param chosen   int32 [P]
 * @param rejected int32 [P]
 * @returns loss f32 [1], which ends the tape; stats f64 [8]
 * @throws RangeError `SHAPE` `ID`, `RANGE` for a label or labelSmoothing outside its range (labels
 *   in a tensor are not looked at), TypeError `ARGUMENT` where refScores is missing or an option is
 *   given that the form has no use for
 */
export function preferenceLoss(scores: Input, chosen: Input, rejected: Input, options: PreferenceLossOptions): Loss {
  const own = optionsOf("preferenceLoss", options);
  check(own);
  const {
    form,
    denominator,
    refScores,
    beta = 0.1,
    margin,
    label,
    weight,
    labelSmoothing = 0,
    centerCoef = 0,
    scale = 1,
    stats: given = true,
    ...unknown
  } = own;
  const { loss, stats } = run(
    "preferenceLoss",
    {
      ...unknown, // is refused
      scores,
      refScores,
      chosen,
      rejected,
      margin,
      label,
      weight,
      form,
      beta,
      labelSmoothing,
      centerCoef,
      denominator,
      scale,
      stats: given,
    },
    (d, t) => {
      endOfTape("preferenceLoss", d);
      return { scores: t.dscores };
    },
  );
  return { loss, stats };
}

function check({ form, refScores, beta, margin, label, labelSmoothing }: Partial<PreferenceLossOptions>): void {
  const unused = {
    "bradley-terry": { refScores, beta },
    dpo: {},
    ipo: { margin, label, labelSmoothing: labelSmoothing || undefined },
  }[form!];
  for (const [name, given] of Object.entries(unused ?? {}))
    if ((given ?? undefined) !== undefined)
      throw typeError("ARGUMENT", `preferenceLoss: ${name} has no use in the form ${form}`);
  if (!label || label instanceof Tensor || label instanceof Parameter) return;
  const [labels] = shapeOfInput("preferenceLoss: label", label);
  for (let p = 0; p < labels; p++)
    if (!(label[p] >= 0 && label[p] <= 1))
      throw rangeError("RANGE", `preferenceLoss: label[${p}] is ${label[p]}, wanted 0 to 1`);
}
