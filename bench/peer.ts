import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { root } from "../lib/device/native.js";
import type { Timer } from "./measure.js";

const folder = join(root, "bench/peers");

interface Script {
  file: string;
  /** Names of the rows that it may have. */
  rows: RegExp;
}
const scripts: readonly Script[] = [
  { file: "torch_peer.py", rows: /./ },
  { file: "trl_peer.py", rows: /^(linearLogprob|linearPolicyLoss)$/ },
  { file: "trl_ppo_peer.py", rows: /^PPO update$/ },
  { file: "llama_peer.mjs", rows: /^decode$/ },
];

/** A row whose work a peer is to prepare. */
export interface Question {
  name: string;
  shape: string;
  /** Sizes that a whole model is built by, in rows that have one. */
  sizes?: object;
}

/** A peer's implementation of a row's work. */
export interface Implementation {
  name: string;
  timer: Timer;
  /** Peak bytes of the peer's process, beyond what it held before the row was prepared. */
  bytes(): Promise<number>;
}

/**
 * A peer's process, driven line by line (bench/peers/serve.py). It prepares the work of a row and
 * times it on request.
 */
class Process {
  private readonly answers: ((line: string) => void)[] = [];
  private ended = false;

  private constructor(private readonly child: ChildProcess) {
    createInterface({ input: child.stdout! }).on("line", (line) => this.answers.shift()?.(line));
    child.stdin!.on("error", () => undefined); // of a process that has ended
    child.on("close", () => {
      this.ended = true;
      for (const answer of this.answers.splice(0)) answer("");
    });
  }

  /**
   * Starts a process and waits until it is ready. Undefined if it lacks a package that it imports.
   */
  static async start(command: string, file: string, threads: number): Promise<Process | undefined> {
    const one = new Process(spawn(command, [join(folder, file), String(threads)], { stdio: ["pipe", "pipe", "pipe"] }));
    let complaint = "";
    one.child.stderr!.on("data", (data: Buffer) => (complaint = (complaint + data.toString()).slice(-1000)));
    one.child.on("error", (error) => (complaint = error.message));
    if ((await one.answer()) === "ready") return one;
    console.error(`${file} does not run with ${command}: ${complaint.trim().split("\n").at(-1)}`);
    return undefined;
  }

  private answer(): Promise<string> {
    return new Promise((resolve) => (this.ended ? resolve("") : this.answers.push(resolve)));
  }
  /** Sends a line and resolves to the answer, which is empty if the process has ended. */
  ask(line: string): Promise<string> {
    this.child.stdin!.write(`${line}\n`);
    return this.answer();
  }
  /**
   * Ends the process and waits until it is gone, so that it does not disturb what is measured next.
   */
  async close(): Promise<void> {
    this.child.stdin!.end();
    if (!this.ended) await once(this.child, "close");
  }
}

/**
 * The peers that this machine has. Peers in Python run in the first Python of `RLHF_PEER_PYTHON`
 * that has what they import; colons separate several. llama.cpp runs where `npm ci` was run in
 * bench/peers.
 */
export class Peers {
  private readonly running = new Map<Script, Promise<Process | undefined>>();

  constructor(private readonly threads: number) {}

  /** Prepares the work of a row in each peer that has it. */
  async prepare(row: Question): Promise<Implementation[]> {
    const all: Implementation[] = [];
    for (const script of scripts.filter(({ rows }) => rows.test(row.name))) {
      const process = await this.process(script);
      if (!process) continue;
      const names = JSON.parse((await process.ask(`prepare ${JSON.stringify(row)}`)) || '"it has ended"') as
        | string[]
        | string;
      if (typeof names === "string") console.error(`${script.file} has no ${row.name}, ${row.shape}: ${names}`);
      else all.push(...names.map((one, i) => implementation(process, one, i)));
    }
    return all;
  }

  /** Frees the memory of the row's work. */
  async release(): Promise<void> {
    for (const process of await Promise.all(this.running.values())) await process?.ask("release");
  }

  async close(): Promise<void> {
    await Promise.all([...this.running.values()].map(async (running) => (await running)?.close()));
  }

  private process(script: Script): Promise<Process | undefined> {
    if (!this.running.has(script)) this.running.set(script, start(script, this.threads));
    return this.running.get(script)!;
  }
}

async function start({ file }: Script, threads: number): Promise<Process | undefined> {
  if (file.endsWith(".mjs"))
    return existsSync(join(folder, "node_modules")) ? Process.start(process.execPath, file, threads) : undefined;
  for (const python of (process.env.RLHF_PEER_PYTHON ?? "").split(":").filter(Boolean)) {
    const found = await Process.start(python, file, threads);
    if (found) return found;
  }
  return undefined;
}

const implementation = (process: Process, name: string, i: number): Implementation => ({
  name,
  async timer(runs) {
    const answer = await process.ask(`run ${i} ${runs}`);
    if (!answer) throw new Error(`${name} has ended`);
    return Number(answer);
  },
  bytes: async () => Number(await process.ask(`bytes ${i}`)),
});
