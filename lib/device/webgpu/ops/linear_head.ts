import { grid, type Call, type Run } from "../call.js";
import type { Region } from "../memory.js";
import { read, u32, write } from "../queue.js";
import {
  files,
  given,
  logitsGrad,
  operand,
  rowRanges,
  rowsOf,
  rowStats,
  written,
  type Factor,
  type Gradients,
  type Results,
} from "./logprob.js";
import { PolicyLoss } from "./policy_loss.js";

interface Matrix extends Factor {
  row: number;
  step: number;
}
/** c [M, N] = a b^T, or c + a b^T; b may be f16. */
function gemm(
  call: Call,
  M: number,
  N: number,
  K: number,
  a: Matrix,
  b: Matrix,
  c: Region,
  row: number,
  add: boolean,
): void {
  const overrides = { A_STEPS: Number(a.step === 1), B_STEPS: Number(b.step === 1), ADD: Number(add) };
  const numbers = [M, N, K, a.row, a.step, b.row, b.step, row].map(u32);
  const tiles = [Math.ceil(N / 64), Math.ceil(M / 64)] as const;
  call.queue.dispatch(
    { files: files(b, "gemm"), entry: "gemm", overrides },
    { 0: operand(b), 1: read(a.region), 2: write(c) },
    numbers,
    tiles,
  );
}

/**
 * The head of a language model over blocks of pairs and slices of the vocabulary, both of which
 * depend on the adapter alone: a slice of the head and a block's logits of it are each a binding.
 */
class Head {
  readonly M: number;
  readonly C: number;
  readonly V: number;
  readonly block: number;
  readonly width: number;
  private readonly gathered: Region;
  private readonly state: Region;
  private made: { dh: Region; links: Region } | undefined;

  constructor(private readonly call: Call) {
    this.M = call.size("rows");
    [this.V, this.C] = call.shape("weight");
    call.require(call.tensor("weight").layout === "rows", "weight is packed, wanted row-major");
    const room = (call.maxBinding - 256) / 4;
    this.block = Math.max(1, Math.min(256, Math.floor(room / 64)));
    this.width =
      Math.floor(Math.min(room / this.block, room / Math.max(1, this.C)) / 64) * 64 ||
      Math.floor(room / Math.max(1, this.C));
    call.require(
      this.width > 0,
      `a row of weight has ${4 * this.C} bytes, and a binding of this adapter at most ${call.maxBinding}`,
    );
    this.gathered = call.scratch(4 * this.block * this.C);
    this.state = call.scratch(4 * this.block * 8);
  }

  *blocks(): Generator<[number, number]> {
    for (let begin = 0; begin < this.M; begin += this.block) {
      this.gather(begin, Math.min(this.M, begin + this.block));
      yield [begin, Math.min(this.M, begin + this.block)];
    }
  }
  *slices(): Generator<[number, number]> {
    for (let first = 0; first < this.V; first += this.width) yield [first, Math.min(this.V, first + this.width)];
  }
  scratch(): Region {
    return this.call.scratch(4 * this.block * Math.min(this.width, this.V));
  }

  logits(to: Region, [begin, end]: [number, number], [first, last]: [number, number]): void {
    const weight = { ...rowsOf(this.call, "weight", first, last), row: this.C, step: 1 };
    gemm(
      this.call,
      end - begin,
      last - first,
      this.C,
      { region: this.gathered, row: this.C, step: 1 },
      weight,
      to,
      last - first,
      false,
    );
  }
  stats(logits: Region, results: Results, [begin, end]: [number, number], [first, last]: [number, number]): void {
    const columns = last - first;
    const slice = {
      rows: end - begin,
      columns,
      row: columns,
      first,
      begin,
      opening: first === 0,
      closing: last === this.V,
    };
    rowStats(this.call, { region: logits }, this.state, results, slice);
  }
  /**
   * From a slice of logits to their gradient, in place, and on to the head's and to that of the
   * block's hidden states.
   */
  gradient(logits: Region, of: Gradients, [begin, end]: [number, number], [first, last]: [number, number]): void {
    const { call, C } = this;
    const [rows, columns] = [end - begin, last - first];
    logitsGrad(call, undefined, logits, of, { rows, columns, row: columns, first, begin });
    if (call.has("dh")) {
      this.made ??= { dh: call.scratch(4 * this.block * C), links: call.scratch(4 * this.block) };
      const weight = { ...rowsOf(call, "weight", first, last), row: 1, step: C };
      gemm(call, rows, C, columns, { region: logits, row: columns, step: 1 }, weight, this.made.dh, C, first > 0);
    }
    if (call.has("dweight")) {
      const h = { region: this.gathered, row: 1, step: C };
      gemm(
        call,
        columns,
        C,
        rows,
        { region: logits, row: 1, step: columns },
        h,
        call.rows("dweight", first, last),
        C,
        true,
      );
    }
  }
  /** Adds the gradients of the block's hidden states to dh. */
  scatter([begin, end]: [number, number]): void {
    if (!this.made) return;
    const { call, C } = this;
    const { dh, links } = this.made;
    const rows = end - begin;
    call.queue.dispatch(
      { files: ["linear_head"], entry: "link" },
      { 0: call.in("rows"), 3: write(links) },
      this.numbers(begin, end, 0, 0, 0),
      [Math.ceil(rows / 256)],
    );
    this.windows("dh", (region, first, count, row) => {
      const bound = { 0: call.in("rows"), 1: read(dh), 2: read(links), 3: write(region) };
      call.queue.dispatch(
        { files: ["linear_head"], entry: "scatter" },
        bound,
        this.numbers(begin, end, first, count, row),
        grid(rows * C),
      );
    });
  }

  private gather(begin: number, end: number): void {
    const { call } = this;
    this.windows("h", (region, first, count, row) => {
      const bound = { 0: call.in("rows"), 1: read(region), 2: write(this.gathered) };
      call.queue.dispatch(
        { files: ["linear_head"], entry: "gather" },
        bound,
        this.numbers(begin, end, first, count, row),
        grid((end - begin) * this.C),
      );
    });
  }
  private windows(name: "h" | "dh", f: (region: Region, first: number, count: number, row: number) => void): void {
    for (const [first, last] of rowRanges(this.call, name))
      f(this.call.rows(name, first, last), first, last - first, this.call.tensor(name).stride);
  }
  private numbers(begin: number, end: number, first: number, count: number, row: number) {
    return [end - begin, this.C, begin, first, count, row, this.call.shape("h")[0]].map(u32);
  }
}

export const linearHead: Record<string, Run> = {
  linearLogprob(call) {
    const head = new Head(call);
    const logits = head.scratch();
    for (const block of head.blocks())
      for (const slice of head.slices()) {
        head.logits(logits, block, slice);
        head.stats(logits, written(call), block, slice);
      }
  },
  linearLogprobGrad(call) {
    const head = new Head(call);
    const logits = head.scratch();
    if (call.has("dh")) call.queue.clear(call.region("dh"));
    for (const block of head.blocks()) {
      for (const slice of head.slices()) {
        head.logits(logits, block, slice);
        head.gradient(logits, given(call), block, slice);
      }
      head.scatter(block);
    }
  },
  /** A block's logits of all slices are kept until they are gradients: three products in all. */
  linearPolicyLoss(call) {
    const head = new Head(call);
    const { M } = head;
    const slices = [...head.slices()];
    const kept = slices.map(() => head.scratch());
    const [lse, dlogp] = [call.scratch(4 * M), call.scratch(4 * M)];
    const dentropy = call.number("entropyCoef") === 0 ? undefined : call.scratch(4 * M);
    const [logp, entropy] = [call.region("logp"), call.region("entropy")];
    const loss = new PolicyLoss(call, M, logp, entropy);
    const backward = call.has("dh") || call.has("dweight");
    if (call.has("dh")) call.queue.clear(call.region("dh"));
    for (const block of head.blocks()) {
      slices.forEach((slice, i) => {
        head.logits(kept[i], block, slice);
        head.stats(kept[i], { logp: write(logp), lse: write(lse), entropy: write(entropy) }, block, slice);
      });
      if (!backward) continue;
      loss.gradients(dlogp, dentropy, ...block);
      slices.forEach((slice, i) => head.gradient(kept[i], { logp, lse, entropy, dlogp, dentropy }, block, slice));
      head.scatter(block);
    }
    loss.sums();
  },
};
