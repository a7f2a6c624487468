import { existsSync } from "node:fs";
import { appendFile, open, readdir, readFile, rm, rmdir, truncate } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../../device/device.js";
import { typeError } from "../../device/errors.js";
import { makeFolder, syncFolder, writeFileDurably, writing } from "../../files/durable.js";
import { list, writeListed, type ListedContent } from "../../files/listed.js";
import { listedSum, sha256, SUMS } from "../../files/sums.js";
import { Checkpoint, type CheckpointParts } from "./checkpoint.js";
import { configText, isConfigText, means } from "../config/config.js";
import { Folder } from "./folder.js";
import { fingerprints, type Inputs } from "./inputs.js";
import { Interrupt } from "./interrupt.js";
import { Journal } from "./journal.js";
import type { Config } from "../config/schema.js";
import { heldLines, readSealed, sealed } from "./seal.js";

const CONFIG = "config.yaml";
/** What a run writes, beside its configuration. */
const RUN_FILES = [
  "inputs.json",
  "stages.json",
  "metrics.jsonl",
  "checkpoints",
  "offending.jsonl",
  "report.html",
  SUMS,
];

export interface StageResult {
  name: string;
  seconds: number;
  /** Memory of the device, at most, during the stage. */
  peakBytes: number;
  /** What the stage has to tell: counts, figures, examples. */
  result: Record<string, unknown>;
}

/**
 * A run's folder: its metrics, the stages that are done, the checkpoints of the one that is not.
 * One run at a time.
 */
export class Run {
  readonly done: StageResult[] = [];
  private metricsBytes = 0;
  private readonly interrupt = new Interrupt();

  private constructor(
    private readonly home: Folder,
    readonly config: Config,
    readonly device: Device,
  ) {}

  /**
   * Opens the folder; without `resume`, the progress of an earlier run in it is forgotten.
   * @param outputs names of what the command writes to the folder, beside what every run does
   * @throws TypeError `FOLDER` if it cannot be written, or holds files by these names that no run
   *   made, `LOCKED` if another run has it, `RESUME` if the
   *   earlier run had another configuration or other inputs, by the option that names them,
   * `CONFIG` if it has a config.yaml that somebody wrote
   *   and that says otherwise
   */
  static async open(
    folder: string,
    config: Config,
    device: Device,
    resume: boolean,
    inputs: Inputs = { files: {} },
    outputs: readonly string[] = [],
  ): Promise<Run> {
    const run = new Run(await Folder.open(folder, [...RUN_FILES, ...outputs]), config, device);
    const kind = device.kind === "cpu" ? undefined : device.kind; // other devices have other bits
    const all = { ...inputs, words: { ...inputs.words, "--device": kind } };
    try {
      const found = await fingerprints(all, folder);
      await writing(folder, () => run.begin(resume, all, found));
    } catch (error) {
      run[Symbol.dispose]();
      throw error;
    }
    return run;
  }

  get folder(): string {
    return this.home.path;
  }

  /**
   * inputs.json is the first file of a run's progress to be written and the first to be removed:
   * without it there is none.
   */
  private async begin(resume: boolean, inputs: Inputs, found: Record<string, string>): Promise<void> {
    const isBegun = existsSync(this.path("inputs.json"));
    if (isBegun) await this.takeUp(resume);
    await this.removeCheckpoints();
    if (!resume) this.done.length = 0;
    if (!(isBegun && resume) && existsSync(this.path("checkpoints")))
      throw typeError(
        "RESUME",
        `${this.folder} holds a run that has not ended: go on with --resume, or remove ${this.path("checkpoints")} to begin anew`,
      );
    const isKept = await this.keepsConfig(isBegun && resume);
    if (!(isBegun && resume)) await this.forget();
    const config = this.path(CONFIG);
    if (!isKept) {
      await this.home.claim(CONFIG);
      await this.write({ [CONFIG]: configText(this.config) });
    } else if (!resume || !(await listedSum(config)))
      await list(this.folder, { [CONFIG]: sha256(await readFile(config)) });
    if (isBegun && resume) return this.compare(inputs, found);
    await writeFileDurably(this.path("inputs.json"), sealed(found, 2));
  }

  /** Reads what is done. */
  private async takeUp(resume: boolean): Promise<void> {
    const stages = this.path("stages.json");
    if (!existsSync(stages)) return;
    try {
      const saved = await readSealed<{ stages: StageResult[]; metricsBytes: number }>(stages);
      for (const stage of saved.stages) this.done.push(stage);
      this.metricsBytes = saved.metricsBytes;
    } catch (error) {
      if (resume) throw error;
    }
  }

  /** Removes the checkpoints of stages that are done, and their folder if no others are in it. */
  private async removeCheckpoints(): Promise<void> {
    const folder = this.path("checkpoints");
    const names = await readdir(folder).catch(() => []);
    const isDone = (file: string) =>
      this.done.some(({ name }) => file.startsWith(`${name}-`) || file === `${name}.jsonl`);
    for (const name of names.filter(isDone)) await rm(join(folder, name), { force: true });
    if (existsSync(folder) && names.every(isDone)) await rmdir(folder);
  }

  /** Removes the progress of an earlier run: durably first what says that there is any. */
  private async forget(): Promise<void> {
    this.metricsBytes = 0;
    const [first, ...others] = ["inputs.json", "stages.json", "metrics.jsonl"]
      .map((name) => this.path(name))
      .filter(existsSync);
    if (first === undefined) return;
    await syncFolder(this.folder); // its checkpoints are gone
    await rm(first);
    await syncFolder(this.folder);
    for (const file of others) await rm(file);
  }

  /** A run goes on with the inputs that it began with. */
  private async compare(inputs: Inputs, found: Record<string, string>): Promise<void> {
    const before = await readSealed<Record<string, string>>(this.path("inputs.json"));
    for (const option of Object.keys({ ...before, ...found }))
      if (before[option] !== found[option]) {
        const given = { ...inputs.files, ...inputs.words }[option];
        throw typeError(
          "RESUME",
          `--resume: ${option}${given === undefined ? " is missing" : `: ${given} is not what ${this.folder} began with`}, and a run goes on only as it began`,
        );
      }
  }

  /**
   * Whether config.yaml has this configuration, in whatever words: then it stays as it is, for it
   * may be the one that was given.
   */
  private async keepsConfig(resume: boolean): Promise<boolean> {
    const file = this.path(CONFIG);
    if (!existsSync(file)) return false;
    const text = await readFile(file, "utf8");
    if (text === configText(this.config) || (await means(file, this.config))) return true;
    if (resume)
      throw typeError(
        "RESUME",
        `--resume: ${file} differs from this configuration, and a run goes on only as it began`,
      );
    if (!this.home.owns(CONFIG) || !isConfigText(text))
      throw typeError(
        "CONFIG",
        `${file} differs from this configuration, which belongs there, and no run wrote it: move it, or choose another folder`,
      );
    return false;
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
    await writing(file, () => appendFile(file, line));
  }

  private async syncMetrics(): Promise<number> {
    const path = this.path("metrics.jsonl");
    if (!existsSync(path)) return this.metricsBytes;
    await writing(path, async () => {
      const file = await open(path, "r+");
      try {
        await file.sync();
      } finally {
        await file.close();
      }
      await syncFolder(this.folder); // its name
    });
    return this.metricsBytes;
  }

  /** Drops what was logged after so many bytes: what is done again is logged again. */
  private async restoreMetrics(bytes = this.metricsBytes): Promise<void> {
    const file = this.path("metrics.jsonl");
    const content = existsSync(file) ? await readFile(file) : Buffer.alloc(0);
    if (content.length < bytes)
      throw typeError(
        "RESUME",
        `${file} has ${content.length} bytes, wanted at least the ${bytes} that were written before the checkpoint`,
      );
    heldLines(content.subarray(0, bytes), file);
    this.metricsBytes = bytes;
    if (content.length > bytes) await writing(file, () => truncate(file, bytes));
  }

  /** Runs a stage, unless an earlier run has finished it and its outcome stands. */
  async stage<T extends Record<string, unknown>>(
    name: string,
    work: () => Promise<T>,
    stands = () => true,
  ): Promise<T> {
    const before = this.done.findIndex((stage) => stage.name === name);
    if (before >= 0 && stands()) return this.done[before].result as T;
    if (before >= 0) this.done.splice(before);
    this.interrupt.check(`${name} has not begun`);
    this.device.resetPeak();
    const start = performance.now();
    const result = await work().catch((error: unknown) => this.failed(name, error));
    this.done.push({ name, seconds: (performance.now() - start) / 1000, peakBytes: this.device.memory().peak, result });
    await writeFileDurably(
      this.path("stages.json"),
      sealed({ stages: this.done, metricsBytes: await this.syncMetrics() }, 2),
    );
    await writing(this.path("checkpoints"), () => this.removeCheckpoints());
    return result;
  }

  /** Keeps the batch that a step failed on, and says so. */
  private async failed(stage: string, error: unknown): Promise<never> {
    const { batch, message } = error as Error & { batch?: object[] };
    if (!batch) throw error;
    const file = this.path("offending.jsonl");
    await this.write({ "offending.jsonl": batch.map((one) => `${JSON.stringify(one, readable)}\n`).join("") });
    throw Object.assign(error as Error, {
      message: `${stage}: ${message}; its batch is in ${file}, the last checkpoints stay`,
    });
  }

  /** The checkpoints of the running stage. */
  checkpoint(stage: string, parts: CheckpointParts): Checkpoint {
    const metrics = { sync: () => this.syncMetrics(), restore: (bytes?: number) => this.restoreMetrics(bytes) };
    return new Checkpoint(this.path("checkpoints"), stage, parts, this.config.checkpoint, metrics, this.interrupt);
  }

  /** What the running stage has sampled under this title. */
  async journal(title: string): Promise<Journal> {
    const folder = this.path("checkpoints");
    await makeFolder(folder);
    const journal = new Journal(join(folder, `${title.replace(/\W+/g, "-")}.jsonl`), this.interrupt);
    await writing(folder, () => syncFolder(folder));
    return journal;
  }

  /**
   * Removes what the run made here, for its outcome lies elsewhere, and the folder with it if
   * nothing else is there.
   */
  async remove(): Promise<void> {
    await this.home.remove("checkpoints");
  }

  [Symbol.dispose](): void {
    this.interrupt[Symbol.dispose]();
    this.home[Symbol.dispose]();
  }
}

/** Arrays of numbers as JSON has them, and what is not finite by its name. */
function readable(_: string, value: unknown): unknown {
  if (ArrayBuffer.isView(value)) return Array.from(value as Float32Array);
  return typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
}
