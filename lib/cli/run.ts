import { existsSync, mkdirSync } from "node:fs";
import { appendFile, mkdir, open, readdir, readFile, rm, truncate } from "node:fs/promises";
import { join } from "node:path";
import { Lock } from "../data/lock.js";
import type { Device } from "../device/device.js";
import { typeError } from "../device/errors.js";
import { list, writeListed, type ListedContent } from "../model/listed.js";
import { writeFileDurably } from "../model/safetensors.js";
import { listedSum, sha256 } from "../model/sums.js";
import { Checkpoint, type CheckpointParts } from "./checkpoint.js";
import { configText, isConfigText, means } from "./config.js";
import { fingerprints, type Inputs } from "./inputs.js";
import { Interrupt } from "./interrupt.js";
import { Journal } from "./journal.js";
import type { Config } from "./schema.js";
import { heldLines, readSealed, sealed } from "./seal.js";

const PROGRESS_FILES = ["stages.json", "metrics.jsonl", "checkpoints", "inputs.json"];

export interface StageResult {
  name: string;
  seconds: number;
  /** Memory of the device, at most, during the stage. */
  peakBytes: number;
  /** What the stage has to tell: counts, figures, examples. */
  result: Record<string, unknown>;
}

/** A run's folder: its metrics, the stages that are done, the checkpoints of the one that is not. One run at a time. */
export class Run {
  readonly done: StageResult[] = [];
  private metricsBytes = 0;
  private readonly interrupt = new Interrupt();

  private constructor(
    readonly folder: string,
    readonly config: Config,
    readonly device: Device,
    private readonly lock: Lock,
  ) {}

  /**
   * Opens the folder; without `resume`, the progress of an earlier run in it is forgotten.
   * @throws TypeError `FOLDER` if it cannot be written, `LOCKED` if another run has it, `RESUME` if the earlier run had another configuration or other
   *   inputs, by the option that names them, `CONFIG` if it has a config.yaml that somebody wrote and that says otherwise
   */
  static async open(folder: string, config: Config, device: Device, resume: boolean, inputs: Inputs = { files: {} }): Promise<Run> {
    let lock: Lock;
    try {
      await mkdir(folder, { recursive: true });
      lock = new Lock(join(folder, ".lock"), "one run in a folder at a time");
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      throw code === "LOCKED" ? error : typeError("FOLDER", `${folder} cannot be written: ${message}`);
    }
    const run = new Run(folder, config, device, lock);
    try {
      await run.begin(resume, inputs);
    } catch (error) {
      run[Symbol.dispose]();
      throw error;
    }
    return run;
  }

  private async begin(resume: boolean, inputs: Inputs): Promise<void> {
    const [config, stages] = [this.path("config.yaml"), this.path("stages.json")];
    await this.sweep();
    if (!resume && existsSync(this.path("checkpoints")))
      throw typeError("RESUME", `${this.folder} holds a run that has not ended: go on with --resume, or remove ${this.path("checkpoints")} to begin anew`);
    const isKept = await this.keepsConfig(config, resume);
    if (!resume) for (const file of PROGRESS_FILES) await rm(this.path(file), { force: true, recursive: true });
    await this.compare(inputs, resume);
    if (!isKept) await this.write({ "config.yaml": configText(this.config) });
    else if (!resume || !(await listedSum(config))) await list(this.folder, { "config.yaml": sha256(await readFile(config)) });
    if (!existsSync(stages)) return;
    const saved = await readSealed<{ stages: StageResult[]; metricsBytes: number }>(stages);
    for (const stage of saved.stages) this.done.push(stage);
    this.metricsBytes = saved.metricsBytes;
  }

  /** Keeps what the inputs were, so that a run goes on with the same. */
  private async compare(inputs: Inputs, resume: boolean): Promise<void> {
    const file = this.path("inputs.json");
    const found = await fingerprints(inputs, this.folder);
    if (resume && existsSync(file)) {
      const before = await readSealed<Record<string, string>>(file);
      for (const option of Object.keys({ ...before, ...found }))
        if (before[option] !== found[option]) {
          const given = { ...inputs.files, ...inputs.words }[option];
          throw typeError(
            "RESUME",
            `--resume: ${option}${given === undefined ? " is missing" : `: ${given} is not what ${this.folder} began with`}, and a run goes on only as it began`,
          );
        }
    }
    await writeFileDurably(file, sealed(found, 2));
  }

  /** Whether the file has this configuration, in whatever words: then it stays as it is, for it may be the one that was given. */
  private async keepsConfig(file: string, resume: boolean): Promise<boolean> {
    if (!existsSync(file)) return false;
    const text = await readFile(file, "utf8");
    if (text === configText(this.config) || (await means(file, this.config))) return true;
    if (resume) throw typeError("RESUME", `--resume: ${file} differs from this configuration, and a run goes on only as it began`);
    if (!isConfigText(text))
      throw typeError("CONFIG", `${file} differs from this configuration, which belongs there, and no run wrote it: move it, or choose another folder`);
    return false;
  }

  /** Removes what a run that was killed was writing beside its files. */
  private async sweep(): Promise<void> {
    const entries = await readdir(this.folder, { withFileTypes: true });
    for (const folder of [this.folder, ...entries.filter((entry) => entry.isDirectory()).map(({ name }) => this.path(name))])
      for (const name of await readdir(folder)) if (/^\..+\.[0-9a-f]{12}$/.test(name)) await rm(join(folder, name), { force: true });
  }

  path(...parts: string[]): string {
    return join(this.folder, ...parts);
  }

  /** Writes files of the folder, and lists their digests in its SHA256SUMS. */
  write(files: Record<string, ListedContent>): Promise<void> {
    return writeListed(this.folder, files);
  }

  /** Appends a line with its checksum to metrics.jsonl. */
  async log(metrics: { stage: string; step: number } & Record<string, unknown>): Promise<void> {
    const line = sealed(metrics) + "\n";
    this.metricsBytes += Buffer.byteLength(line);
    const file = this.path("metrics.jsonl");
    await appendFile(file, line).catch((error: Error) => {
      throw typeError("WRITE", `${file} cannot be written: ${error.message}`);
    });
  }

  private async syncMetrics(): Promise<number> {
    if (existsSync(this.path("metrics.jsonl"))) {
      const file = await open(this.path("metrics.jsonl"), "r+");
      try {
        await file.sync();
      } finally {
        await file.close();
      }
    }
    return this.metricsBytes;
  }

  /** Drops what was logged after so many bytes: what is done again is logged again. */
  private async restoreMetrics(bytes = this.metricsBytes): Promise<void> {
    const file = this.path("metrics.jsonl");
    const content = existsSync(file) ? await readFile(file) : Buffer.alloc(0);
    if (content.length < bytes)
      throw typeError("RESUME", `${file} has ${content.length} bytes, wanted at least the ${bytes} that were written before the checkpoint`);
    heldLines(content.subarray(0, bytes), file);
    this.metricsBytes = bytes;
    if (content.length > bytes) await truncate(file, bytes);
  }

  /** Runs a stage, unless an earlier run has finished it. */
  async stage<T extends Record<string, unknown>>(name: string, work: () => Promise<T>): Promise<T> {
    const before = this.done.find((stage) => stage.name === name);
    if (before) return before.result as T;
    this.interrupt.check(`${name} has not begun`);
    this.device.resetPeak();
    const start = performance.now();
    const result = await work().catch((error: unknown) => this.failed(name, error));
    this.done.push({ name, seconds: (performance.now() - start) / 1000, peakBytes: this.device.memory().peak, result });
    await writeFileDurably(this.path("stages.json"), sealed({ stages: this.done, metricsBytes: await this.syncMetrics() }, 2));
    await rm(this.path("checkpoints"), { force: true, recursive: true });
    return result;
  }

  /** Keeps the batch that a step failed on, and says so. */
  private async failed(stage: string, error: unknown): Promise<never> {
    const { batch, message } = error as Error & { batch?: object[] };
    if (!batch) throw error;
    const file = this.path("offending.jsonl");
    await this.write({ "offending.jsonl": batch.map((one) => `${JSON.stringify(one, readable)}\n`).join("") });
    throw Object.assign(error as Error, { message: `${stage}: ${message}; its batch is in ${file}, the last checkpoints stay` });
  }

  /** The checkpoints of the running stage. */
  checkpoint(stage: string, parts: CheckpointParts): Checkpoint {
    const metrics = { sync: () => this.syncMetrics(), restore: (bytes?: number) => this.restoreMetrics(bytes) };
    return new Checkpoint(this.path("checkpoints"), stage, parts, this.config.checkpoint, metrics, this.interrupt);
  }

  /** What the running stage has sampled under this title. */
  journal(title: string): Journal {
    mkdirSync(this.path("checkpoints"), { recursive: true });
    return new Journal(this.path("checkpoints", `${title.replace(/\W+/g, "-")}.jsonl`), this.interrupt);
  }

  /** Removes the folder, of a run whose outcome lies elsewhere. */
  async remove(): Promise<void> {
    await rm(this.folder, { recursive: true });
  }

  [Symbol.dispose](): void {
    this.interrupt[Symbol.dispose]();
    this.lock[Symbol.dispose]();
  }
}

/** Arrays of numbers as JSON has them, and what is not finite by its name. */
function readable(_: string, value: unknown): unknown {
  if (ArrayBuffer.isView(value)) return Array.from(value as Float32Array);
  return typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
}
