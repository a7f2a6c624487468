import { grid, type Call, type Run } from "../call.js";
import type { Region } from "../memory.js";
import { pair, read, u32, write, type Binding } from "../queue.js";

const files = ["math", "reduce", "preference_loss"];
const BLOCK = 4096; // pairs of a partial sum, records of a workgroup that sorts

/** Sorts n records, (score, slope), by their score, and adds each score's slopes in the order that they came in. */
function gatherSlopes(call: Call, records: Region, n: number, M: number): void {
  const blocks = Math.ceil(n / BLOCK);
  const counts = write(call.scratch(4 * 16 * blocks));
  let [from, to] = [write(records), write(call.scratch(8 * n))];
  const run = (entry: string, bound: Record<number, Binding>, shift: number, size: readonly [number, number?]) =>
    call.queue.dispatch({ files, entry }, bound, [n, blocks, shift].map(u32), size);
  for (let shift = 0; shift < 32 && M > 2 ** shift; shift += 4) {
    run("preference_count", { 0: from, 2: counts }, shift, [blocks]);
    if (n > 0) run("preference_places", { 2: counts }, shift, [1]);
    run("preference_move", { 0: from, 1: to, 2: counts }, shift, [blocks]);
    [from, to] = [to, from];
  }
  call.queue.clear(call.region("dscores"));
  run("preference_gather", { 0: from, 3: call.out("dscores")! }, 0, grid(n));
}

export const preferenceLoss: Record<string, Run> = {
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
      ...["margin", "label", "weight"].map((name) => u32(Number(call.has(name)))),
    ];
    const options = call.scratch(12 * P);
    ["margin", "label", "weight"].forEach((name, k) => {
      if (call.has(name)) call.queue.copy(call.region(name), { ...options, offset: options.offset + 4 * P * k });
    });
    const [records, partial] = [call.scratch(16 * P), call.scratch(8 * 7 * blocks)];
    const inputs = {
      0: call.in("scores"),
      1: reference ? call.in("refScores") : undefined,
      2: call.in("chosen"),
      3: call.in("rejected"),
      4: read(options),
    };
    call.queue.dispatch(
      { files, entry: "preference_pairs" },
      { ...inputs, 5: write(records), 6: write(partial) },
      scalars,
      [blocks],
    );
    gatherSlopes(call, records, 2 * P, M);
    call.queue.dispatch(
      { files, entry: "preference_total" },
      { 0: read(partial), 1: call.out("stats"), 2: call.out("loss") },
      scalars,
      [1],
    );
  },
};
