import { grid, type Run } from "../call.js";
import { pair, read, u32, write } from "../queue.js";

const files = ["math", "reduce", "preference_loss"];
const BLOCK = 4096; // pairs of a partial sum

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
    const [slopes, partial] = [call.scratch(8 * P), call.scratch(8 * 7 * blocks)];
    const pairs = { 2: call.in("chosen"), 3: call.in("rejected") };
    const inputs = {
      0: call.in("scores"),
      1: reference ? call.in("refScores") : undefined,
      ...pairs,
      4: read(options),
    };
    call.queue.dispatch(
      { files, entry: "preference_pairs" },
      { ...inputs, 5: write(slopes), 6: write(partial) },
      scalars,
      [blocks],
    );
    call.queue.dispatch(
      { files, entry: "preference_scores" },
      { ...pairs, 5: read(slopes), 7: call.out("dscores") },
      scalars,
      grid(M),
    );
    call.queue.dispatch(
      { files, entry: "preference_total" },
      { 0: read(partial), 1: call.out("stats"), 2: call.out("loss") },
      scalars,
      [1],
    );
  },
};
