import { run, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

/**
 * Rows of a table: y[n] = table[ids[n]]. Also gathers rows of a hidden state.
 *
 * @param ids   int32 [N], each in [0, V)
 * @param table f32 [V, C]; on a CPU it may be bf16
 * @returns f32 [N, C]
 * @throws RangeError `ID` for an id outside the table
 */
export function embedding(ids: Input, table: Input): Tensor {
  return run("embedding", { ids, table }, ({ y: dy }, { ids }, wants) => {
    const dtable = wants.into("table");
    if (dtable) run("embeddingGrad", { ids, dy, dtable });
  }).y;
}
