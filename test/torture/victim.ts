import { execFile, spawn } from "node:child_process";
import { mkdir, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { root } from "../../lib/device/native.js";
import { callsOf, type Call } from "./disk.js";

// Processes that shim.c is loaded into.

const HANGS = 120_000; // ms
const main = join(root, "dist/lib/cli/main.js");
const source = join(root, "test/torture/shim.c");
export const build = join(root, "build/torture");

/** What the shim does, and at which call. */
export interface Harm {
  does: "kill" | "tear" | "EIO" | "EACCES" | "ENOSPC";
  at: number;
}

export interface Ended {
  code: number | null;
  signal: string | null;
  /** What it said on standard error. */
  said: string;
  calls: Call[];
  seconds: number;
}

/** Compiles the shim; says why that cannot be done here. */
export async function shim(): Promise<{ path: string } | { missing: string }> {
  if (process.platform !== "linux") return { missing: "the torture wants Linux" };
  const path = join(build, "shim.so");
  const times = await Promise.all(
    [source, path].map((file) =>
      stat(file).then(
        ({ mtimeMs }) => mtimeMs,
        () => 0,
      ),
    ),
  );
  if (times[1] > times[0]) return { path };
  await mkdir(build, { recursive: true });
  try {
    await promisify(execFile)("cc", ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, source]);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return { missing: "the torture wants a C compiler, cc" };
  }
  return { path };
}

export interface How {
  shim: string;
  /** The folder whose calls are numbered. */
  sandbox: string;
  harm?: Harm;
  /** Kills it after so many milliseconds, if it has not ended by then. */
  after?: number;
  /** Typed on its standard input. */
  input?: string;
  /** Keeps what is written in the log. */
  withData?: boolean;
}

/** Runs the command, and comes back once it has ended, however it did. */
export async function rlhf(
  args: readonly string[],
  { shim: path, sandbox, harm, after, input, withData }: How,
): Promise<Ended> {
  const log = `${sandbox}.log`;
  await rm(log, { force: true });
  const env = {
    ...process.env,
    RLHF_NUM_THREADS: "1",
    UV_USE_IO_URING: "0",
    LD_PRELOAD: path,
    TORTURE_ROOT: sandbox,
    TORTURE_LOG: log,
    ...(withData ? { TORTURE_DATA: "1" } : {}),
    ...(harm ? { TORTURE_DO: harm.does, TORTURE_AT: String(harm.at) } : {}),
  };
  const begun = performance.now();
  const child = spawn(process.execPath, [main, ...args], { env, stdio: ["pipe", "ignore", "pipe"], detached: true }); // Ctrl-C is not for it
  child.stdin.on("error", () => undefined).end(input); // it may be dead by then
  const timer = setTimeout(() => child.kill("SIGKILL"), after ?? HANGS);
  let said = "";
  child.stderr.on("data", (chunk: Buffer) => (said += chunk.toString()));
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve, reject) => {
    child.on("error", reject).on("close", (...how) => resolve(how));
  });
  clearTimeout(timer);
  const seconds = (performance.now() - begun) / 1000;
  if (after === undefined && seconds > HANGS / 1000) throw new Error(`rlhf ${args.join(" ")} hangs`);
  const calls = callsOf(await readFile(log).catch(() => Buffer.alloc(0)));
  return { code, signal, said, calls, seconds };
}
