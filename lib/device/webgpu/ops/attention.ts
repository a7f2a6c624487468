import { grid, type Call, type Run } from "../call.js";
import type { Region } from "../memory.js";
import { f32, read, u32, write, type Scalar } from "../queue.js";

const FORWARD = ["math", "attention_common", "attention"];
const BACKWARD = ["math", "attention_common", "attention_grad"];

interface Setting {
  map: Region;
  scalars: Scalar[];
  sizes: { COLUMNS: number };
  /** At least the blocks of queries and of keys that there are. */
  queryBlocks: number;
  keyBlocks: number;
  H: number;
  G: number;
  N: number;
}

/**
 * Offsets, prefixes and what follows from them, in one buffer; blocks of so many queries and keys
 * within each sequence.
 */
function setting(call: Call, queryBlock: number, keyBlock: number): Setting {
  const [N, H, D] = call.shape("q");
  const G = call.shape("k")[1];
  const B = call.size("cuSeqlens") - 1;
  call.require(G === 0 ? H === 0 : H % G === 0, "the heads of q must be a multiple of those of k and v");
  call.require(D <= 256, `the head size is ${D}, this device has kernels up to 256`);
  const map = call.scratch(4 * (5 * B + 4));
  const part = (at: number, words: number) => ({ ...map, offset: map.offset + 4 * at, bytes: 4 * words });
  const [prefixAt, tablesAt] = [B + 1, 2 * B + 1];
  call.queue.copy(call.region("cuSeqlens"), part(0, B + 1));
  if (call.has("prefix")) call.queue.copy(call.region("prefix"), part(prefixAt, B));
  const tables = { 0: call.in("cuSeqlens"), 1: call.in("prefix"), 2: write(part(tablesAt, 3 * (B + 1))) };
  const prefixed = Number(call.has("prefix"));
  call.queue.dispatch(
    { files: ["chains"], entry: "chains" },
    tables,
    [N, B, prefixed, queryBlock, keyBlock].map(u32),
    [1],
  );
  const stride = (name: string) => (call.has(name) ? call.tensor(name).stride : 0);
  const numbers = [N, B, H, G, D, prefixed, stride("q"), stride("k"), stride("v"), stride("dO"), 0, prefixAt, tablesAt];
  return {
    map,
    scalars: [...numbers.map(u32), f32(call.number("scale"))],
    sizes: { COLUMNS: Math.max(1, Math.ceil(D / 16)) },
    queryBlocks: Math.min(N, Math.ceil(N / queryBlock) + B),
    keyBlocks: Math.min(N, Math.ceil(N / keyBlock) + B),
    H,
    G,
    N,
  };
}

export const attention: Record<string, Run> = {
  attention(call) {
    const { map, scalars, sizes, queryBlocks, H } = setting(call, 64, 32);
    const bound = {
      0: read(map),
      1: call.in("q"),
      2: call.in("k"),
      3: call.in("v"),
      4: call.out("o"),
      5: call.out("lse"),
    };
    call.queue.dispatch({ files: FORWARD, entry: "attention", sizes }, bound, scalars, [...grid(queryBlocks, 1), H]);
  },
  attentionGrad(call) {
    const { map, scalars, sizes, queryBlocks, keyBlocks, H, G, N } = setting(call, 32, 32);
    const pairs = call.scratch(8 * N * H);
    const delta = { 1: call.in("o"), 2: call.in("lse"), 3: write(pairs), 4: call.in("dO") };
    call.queue.dispatch({ files: BACKWARD, entry: "attention_delta", sizes }, delta, scalars, grid(N * H));
    const bound = { 0: read(map), 1: call.in("q"), 2: call.in("k"), 3: call.in("v"), 4: call.in("dO"), 5: read(pairs) };
    call.queue.dispatch(
      { files: BACKWARD, entry: "attention_grad_keys", sizes },
      { ...bound, 6: call.out("dk"), 7: call.out("dv") },
      scalars,
      [...grid(keyBlocks, 1), G],
    );
    call.queue.dispatch(
      { files: BACKWARD, entry: "attention_grad_queries", sizes },
      { ...bound, 6: call.out("dq") },
      scalars,
      [...grid(queryBlocks, 1), H],
    );
  },
};
