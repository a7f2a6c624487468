import { grid, type Call, type Run } from "../call.js";
import type { Region } from "../memory.js";
import { f32, pair, read, u32, write, type Scalar } from "../queue.js";
import { BLOCK, FAR, flag, shared, weigh } from "./token_loss.js";

const files = ["math", "reduce", "token_loss", "policy_loss"];

/**
 * The policy's loss of log-probs that a kernel made: gradients for ranges of tokens as they come,
 * the sums at the end.
 */
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
    ({ weights: this.weights, kept: this.kept } = weigh(call, files, M, this.scalars));
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
    this.call.queue.dispatch({ files, entry: "policy_loss_grad" }, bound, scalars, grid(end - begin));
  }
  sums(): void {
    const { call, scalars, blocks } = this;
    const partial = call.scratch(8 * 11 * blocks);
    const bound = { ...this.inputs(), 6: this.entropy && read(this.entropy), 7: write(partial) };
    call.queue.dispatch({ files, entry: "policy_loss_sums" }, bound, scalars, grid(blocks, 1));
    const made = { 0: read(partial), 1: read(this.kept), 2: call.out("stats"), 3: call.out("loss") };
    call.queue.dispatch({ files, entry: "policy_loss_total" }, made, scalars, [1]);
  }
}
const FLAG_ENTROPY = 24; // where has_entropy stands among the parameters

export const policyLoss: Record<string, Run> = {
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
};
