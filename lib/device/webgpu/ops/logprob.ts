import { grid, type Call, type Run } from "../call.js";
import type { Region } from "../memory.js";
import { f32, read, u32, write, type Binding } from "../queue.js";

/** The files of a kernel one of whose operands may be f16. */
export const files = (operand: Factor, ...others: string[]) => [
  ...others.slice(0, -1),
  operand.isF16 ? "operand_half" : "operand",
  ...others.slice(-1),
];
export const operand = ({ region, isF16 }: Factor): Binding => read(region, isF16 ? 2 : 4);
/** Rows of a tensor that may be f16. */
export interface Factor {
  region: Region;
  isF16?: boolean;
}
export const rowsOf = (call: Call, name: string, begin: number, end: number): Factor => ({
  region: call.rows(name, begin, end),
  isF16: call.tensor(name).dtype === "f16",
});

/** A slice of rows of logits: what the kernels of logprob.wgsl are told. */
interface Slice {
  rows: number;
  columns: number;
  row: number;
  dlogitsRow?: number;
  first?: number;
  begin: number;
  opening?: boolean;
  closing?: boolean;
}
const scalars = (
  call: Call,
  { rows, columns, row, dlogitsRow = row, first = 0, begin, opening = true, closing = true }: Slice,
  entropy = false,
) => [
  ...[rows, columns, row, dlogitsRow, first, begin, Number(opening), Number(closing), Number(entropy)].map(u32),
  f32(1 / call.number("temperature")),
];

export interface Results {
  logp: Binding;
  lse: Binding;
  entropy: Binding;
}
export const written = (call: Call): Results => ({
  logp: call.out("logp")!,
  lse: call.out("lse")!,
  entropy: call.out("entropy")!,
});

export function rowStats(
  call: Call,
  logits: Factor,
  state: Region,
  { logp, lse, entropy }: Results,
  slice: Slice,
): void {
  const bound = { 0: operand(logits), 1: call.in("y"), 2: write(state), 3: logp, 4: lse, 5: entropy };
  call.queue.dispatch(
    { files: files(logits, "math", "reduce", "logprob"), entry: "row_stats" },
    bound,
    scalars(call, slice),
    grid(slice.rows, 1),
  );
}

/** What a token's gradient is made from: [M] each. */
export interface Gradients {
  logp: Region;
  lse: Region;
  entropy: Region;
  dlogp: Region;
  dentropy: Region | undefined;
}
export const given = (call: Call): Gradients => ({
  logp: call.region("logp"),
  lse: call.region("lse"),
  entropy: call.region("entropy"),
  dlogp: call.region("dlogp"),
  dentropy: call.has("dentropy") ? call.region("dentropy") : undefined,
});

export function logitsGrad(call: Call, logits: Factor | undefined, dlogits: Region, of: Gradients, slice: Slice): void {
  const rest = {
    3: read(of.logp),
    4: read(of.lse),
    5: read(of.entropy),
    6: read(of.dlogp),
    7: of.dentropy && read(of.dentropy),
  };
  const bound = { ...(logits && { 0: operand(logits) }), 1: call.in("y"), 2: write(dlogits), ...rest };
  const entry = logits ? "logits_grad" : "logits_grad_in_place";
  call.queue.dispatch(
    { files: files(logits ?? { region: dlogits }, "math", "reduce", "logprob"), entry },
    bound,
    scalars(call, slice, of.dentropy !== undefined),
    [Math.ceil(slice.columns / 256), slice.rows],
  );
}

/** Ranges of the rows of logits [M, V] that a binding holds. */
export function* rowRanges(call: Call, ...names: string[]): Generator<[number, number]> {
  const M = call.shape(names[0])[0];
  const longest = 4 * Math.max(...names.map((name) => call.tensor(name).stride));
  const rows = Math.min(32768, Math.floor((call.maxBinding - 256) / longest));
  call.require(
    rows > 0 || M === 0,
    `a row of ${names[0]} has ${longest} bytes, and a binding of this adapter at most ${call.maxBinding}`,
  );
  for (let begin = 0; begin < M; begin += rows) yield [begin, Math.min(M, begin + rows)];
}

export const logprob: Record<string, Run> = {
  logprob(call) {
    const columns = call.shape("logits")[1];
    const row = call.tensor("logits").stride;
    const state = call.scratch(32);
    for (const [begin, end] of rowRanges(call, "logits"))
      rowStats(call, rowsOf(call, "logits", begin, end), state, written(call), {
        rows: end - begin,
        columns,
        row,
        begin,
      });
  },
  logprobGrad(call) {
    const columns = call.shape("logits")[1];
    const [row, dlogitsRow] = [call.tensor("logits").stride, call.tensor("dlogits").stride];
    for (const [begin, end] of rowRanges(call, "logits", "dlogits")) {
      const slice = { rows: end - begin, columns, row, dlogitsRow, begin };
      logitsGrad(call, rowsOf(call, "logits", begin, end), call.rows("dlogits", begin, end), given(call), slice);
    }
  },
};
