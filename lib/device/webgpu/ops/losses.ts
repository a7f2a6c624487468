import { grid, type Call, type Run } from "../call.js";
import type { Region } from "../memory.js";
import { f32, pair, read, u32, write, type Scalar } from "../queue.js";

const BLOCK = 4096; // tokens, or pairs, of a partial sum
const POLICY = ["math", "reduce", "token_loss", "policy_loss"];
const VALUE = ["math", "reduce", "token_loss", "value_loss"];
const PREFERENCE = ["math", "reduce", "preference_loss"];

const flag = (call: Call, name: string) => u32(Number(call.has(name)));
const FAR = 3e38; // stands for a limit that is off: infinity, which WGSL does not know

/** What parameters of the losses over tokens begin with. */
function shared(call: Call, M: number, fifth: Scalar): Scalar[] {
  const perSequence = Number(call.choice("aggregation") === "seq-mean-token-mean");
  const sizes = [u32(M), u32(call.size("cuSeqlens") - 1), u32(perSequence), flag(call, "mask")];
  return [...sizes, fifth, ...pair(call.number("denominator")), ...pair(call.number("scale"))];
}

/** w [M], and per sequence whether a token of it counts. */
function weigh(
  call: Call,
  files: readonly string[],
  M: number,
  scalars: readonly Scalar[],
): { weights: Region; kept: Region } {
  const B = call.size("cuSeqlens") - 1;
  const [weights, kept] = [call.scratch(4 * M), call.scratch(4 * B)];
  const bound = { 0: call.in("mask"), 1: call.in("cuSeqlens"), 2: write(weights), 3: write(kept) };
  call.queue.dispatch({ files, entry: "token_weights" }, bound, scalars, grid(B, 1));
  return { weights, kept };
}

/** The policy's loss of log-probs that a kernel made: gradients for ranges of tokens as they come, the sums at the end. */
export class PolicyLoss {
  private readonly scalars: Scalar[];
  private readonly blocks: number;
  private readonly weights: Region;
  private readonly kept: Region;

  constructor(
    private readonly call: Call,
    private readonly M: number,
    private readonly logp: Region,
    private readonly entropy: Region | undefined,
  ) {
    call.require(call.number("klCoef") === 0 || call.has("refLogp"), "klCoef is not 0, and refLogp is missing");
    call.require(
      call.number("entropyCoef") === 0 || entropy !== undefined,
      "entropyCoef is not 0, and entropy is missing",
    );
    this.blocks = Math.ceil(M / BLOCK);
    const number = (name: string) => call.number(name);
    const c = number("clipRatioC");
    this.scalars = [
      ...shared(call, M, u32(Number(call.choice("objective") === "log-likelihood"))),
      ...[
        number("klCoef"),
        number("entropyCoef"),
        1 - number("clipRatioLow"),
        1 + number("clipRatioHigh"),
        Math.min(c, FAR),
      ].flatMap(pair),
      f32(Math.min(number("logRatioClamp"), FAR)),
      u32(number("estimator")),
      u32(Number(c < Infinity)),
      flag(call, "refLogp"),
      flag(call, "importance"),
      u32(Number(entropy !== undefined)),
      u32(this.blocks),
    ];
    ({ weights: this.weights, kept: this.kept } = weigh(call, POLICY, M, this.scalars));
  }

  private inputs() {
    const { call } = this;
    return {
      0: read(this.logp),
      1: call.in("oldLogp"),
      2: call.in("advantages"),
      3: call.in("refLogp"),
      4: call.in("importance"),
      5: read(this.weights),
    };
  }
  /** dlogp and dentropy [M] of tokens [begin, end). */
  gradients(dlogp: Region, dentropy: Region | undefined, begin = 0, end = this.M): void {
    const bound = { ...this.inputs(), 6: write(dlogp), 7: dentropy && write(dentropy) };
    const scalars = [...this.scalars, u32(begin), u32(end)];
    scalars[FLAG_ENTROPY] = u32(Number(dentropy !== undefined));
    this.call.queue.dispatch({ files: POLICY, entry: "policy_loss_grad" }, bound, scalars, grid(end - begin));
  }
  sums(): void {
    const { call, scalars, blocks } = this;
    const partial = call.scratch(8 * 10 * blocks);
    const bound = { ...this.inputs(), 6: this.entropy && read(this.entropy), 7: write(partial) };
    call.queue.dispatch({ files: POLICY, entry: "policy_loss_sums" }, bound, scalars, grid(blocks, 1));
    const made = { 0: read(partial), 1: read(this.kept), 2: call.out("stats"), 3: call.out("loss") };
    call.queue.dispatch({ files: POLICY, entry: "policy_loss_total" }, made, scalars, [1]);
  }
}
const FLAG_ENTROPY = 24; // where has_entropy stands among the parameters

export const losses: Record<string, Run> = {
  policyLoss(call) {
    const loss = new PolicyLoss(
      call,
      call.size("logp"),
      call.region("logp"),
      call.has("entropy") ? call.region("entropy") : undefined,
    );
    loss.gradients(call.region("dlogp"), call.has("dentropy") ? call.region("dentropy") : undefined);
    loss.sums();
  },
  valueLoss(call) {
    const M = call.size("values");
    const range = call.number("clipRange");
    call.require(range === Infinity || call.has("oldValues"), "clipRange is given, and oldValues is missing");
    const blocks = Math.ceil(M / BLOCK);
    const scalars = [...shared(call, M, flag(call, "oldValues")), ...pair(Math.min(range, FAR)), u32(blocks)];
    const { weights } = weigh(call, VALUE, M, scalars);
    const partial = call.scratch(8 * 7 * blocks);
    const inputs = { 0: call.in("values"), 1: call.in("oldValues"), 2: call.in("returns"), 3: read(weights) };
    call.queue.dispatch(
      { files: VALUE, entry: "value_loss_grad" },
      { ...inputs, 4: call.out("dvalues") },
      scalars,
      grid(M),
    );
    call.queue.dispatch(
      { files: VALUE, entry: "value_loss_sums" },
      { ...inputs, 5: write(partial) },
      scalars,
      grid(blocks, 1),
    );
    call.queue.dispatch(
      { files: VALUE, entry: "value_loss_total" },
      { 0: read(partial), 2: call.out("stats"), 3: call.out("loss") },
      scalars,
      [1],
    );
  },
  preferenceLoss(call) {
    const form = call.choice("form");
    const reference = form !== "bradley-terry";
    call.require(!reference || call.has("refScores"), "refScores is missing");
    const [M, P] = [call.size("scores"), call.size("chosen")];
    const blocks = Math.ceil(P / BLOCK);
    const [beta, factor] = [call.number("beta"), call.number("scale") / call.number("denominator")];
    const scalars = [
      ...[M, P, call.number("form"), Number(reference), blocks].map(u32),
      ...[
        form === "dpo" ? beta : 1,
        1 / (2 * beta),
        call.number("labelSmoothing"),
        call.number("centerCoef"),
        factor,
      ].flatMap(pair),
      ...["margin", "label", "weight"].map((name) => flag(call, name)),
    ];
    const options = call.scratch(12 * P);
    ["margin", "label", "weight"].forEach((name, k) => {
      if (call.has(name)) call.queue.copy(call.region(name), { ...options, offset: options.offset + 4 * P * k });
    });
    const [slopes, partial] = [call.scratch(8 * P), call.scratch(8 * 7 * blocks)];
    const pairs = { 2: call.in("chosen"), 3: call.in("rejected") };
    const inputs = {
      0: call.in("scores"),
      1: reference ? call.in("refScores") : undefined,
      ...pairs,
      4: read(options),
    };
    call.queue.dispatch(
      { files: PREFERENCE, entry: "preference_pairs" },
      { ...inputs, 5: write(slopes), 6: write(partial) },
      scalars,
      [blocks],
    );
    call.queue.dispatch(
      { files: PREFERENCE, entry: "preference_scores" },
      { ...pairs, 5: read(slopes), 7: call.out("dscores") },
      scalars,
      grid(M),
    );
    call.queue.dispatch(
      { files: PREFERENCE, entry: "preference_total" },
      { 0: read(partial), 1: call.out("stats"), 2: call.out("loss") },
      scalars,
      [1],
    );
  },
};
