import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { root } from "../device/native.js";

// What is known of the CUDA kernels on real GPUs: the receipts that bench/receipt/receipt.py wrote
// there, bench/results/cuda-*.json.

interface Receipt {
  kernels: string;
  device: { name: string };
  checks: { op: string; case: string; dtype: string; holds?: boolean }[];
  wanted: Record<string, Record<string, string[] | undefined> | undefined>;
}

const DTYPES: Record<string, string> = { f32: "float32", bf16: "bfloat16" };

/** The hash of the kernels' sources, as a receipt states it. */
export function kernelsHash(): string {
  const folder = join(root, "kernels/cuda");
  const hash = createHash("sha256");
  const files = readdirSync(folder).toSorted();
  for (const path of [
    ...files.map((name) => join(folder, name)),
    ...["driver.cc", "fatbin.cmake"].map((name) => join(root, "native/cuda", name)),
  ])
    hash
      .update(`${basename(path)}\n`)
      .update(readFileSync(path))
      .update("\n");
  return hash.digest("hex");
}

/**
 * For an op and the dtypes that the device takes it at, on which GPUs this very source held: a
 * function over what lies there now.
 */
export function receipts(
  folder = join(root, "bench/results"),
): (op: string, dtypes: readonly string[]) => string | null {
  const files = existsSync(folder) ? readdirSync(folder).filter((name) => /^cuda-.*\.json$/.test(name)) : [];
  const now = kernelsHash();
  const valid = files
    .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as Receipt)
    .filter(({ kernels }) => kernels === now);
  return (op, dtypes) => {
    if (dtypes.length === 0) return null;
    const listed = op.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    const held = valid.flatMap(({ device, checks, wanted }) => {
      const good = dtypes.filter((dtype) => {
        const cases = wanted[listed]?.[DTYPES[dtype]] ?? [];
        const rows = checks.filter((row) => row.op === listed && row.dtype === DTYPES[dtype]);
        return (
          cases.length > 0 &&
          cases.every((name) => rows.some((row) => row.case === name)) &&
          rows.every(({ holds }) => holds)
        );
      });
      return good.length > 0 ? [`verified on ${device.name} (${good.join(", ")})`] : [];
    });
    return held.length > 0 ? held.join("; ") : "not yet verified on a GPU";
  };
}
