import { spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root } from "../lib/device/native.js";

/** The addon that this build made; RLHF_ADDON names another. */
export const addon = process.env.RLHF_ADDON ?? join(root, "build/native/Release/rlhf_kernels.node");

/** What a process printed and how it ended. */
export interface Ended {
  out: string;
  error: string;
  /** Exit status, or the signal that ended it. */
  end: number | string;
}

export interface ChildOptions {
  /** Put before Node.js on the command line. */
  command?: readonly string[];
  uid?: number;
  env?: Record<string, string>;
}

/**
 * Runs a program in a process of its own, with the package as `rlhf`, a `require`, and the path of
 * the addon as `addon`.
 */
export function child(program: string, { command = [], uid, env = {} }: ChildOptions = {}): Ended {
  const folder = mkdtempSync(join(tmpdir(), "rlhf-child-"));
  chmodSync(folder, 0o755);
  try {
    const file = join(folder, "program.mjs");
    const head = [
      `import { createRequire } from "node:module";`,
      `const require = createRequire(import.meta.url);`,
      `const addon = ${JSON.stringify(env.RLHF_ADDON ?? addon)};`,
      `const rlhf = await import(${JSON.stringify(join(root, "dist/lib/index.js"))});`,
    ];
    writeFileSync(file, [...head, program].join("\n"));
    const [first, ...rest] = [...command, process.execPath, file];
    const { stdout, stderr, status, signal } = spawnSync(first, rest, {
      encoding: "utf8",
      uid,
      env: { ...process.env, ...env },
      timeout: 120_000,
    });
    return { out: stdout.trim(), error: stderr, end: signal ?? status ?? "not started" };
  } finally {
    rmSync(folder, { recursive: true });
  }
}
