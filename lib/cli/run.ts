import { existsSync } from "node:fs";
import { appendFile, mkdir, readFile, rm, truncate } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../device/device.js";
import { typeError } from "../device/errors.js";
import { readSafetensorsFile, writeFileDurably, writeSafetensors, type Writable } from "../model/safetensors.js";
import type { Transformer } from "../model/transformer.js";
import type { AdamW } from "../rlhf/optimizer.js";
import { configText } from "./config.js";
import type { Config } from "./schema.js";

const PROGRESS_FILES = ["stages.json", "metrics.jsonl", "checkpoint.safetensors", "config.yaml"];

export interface StageResult {
  name: string;
  seconds: number;
  /** Memory of the device, at most, up to the stage's end. */
  peakBytes: number;
  /** What the stage has to tell: counts, figures, examples. */
  result: Record<string, unknown>;
}

/** A run's folder: its metrics, the stages that are done, the checkpoint of the one that is not. */
export class Run {
  readonly done: StageResult[] = [];
  private metricsBytes = 0;

  private constructor(
    readonly folder: string,
    readonly config: Config,
    readonly device: Device,
  ) {}

  /**
   * Opens the folder; without `resume`, the progress of an earlier run in it is forgotten.
   * @throws TypeError `RESUME` if the earlier run had another configuration
   */
  static async open(folder: string, config: Config, device: Device, resume: boolean): Promise<Run> {
    const run = new Run(folder, config, device);
    await mkdir(folder, { recursive: true });
    if (!resume) for (const file of PROGRESS_FILES) await rm(run.path(file), { force: true });
    else if (existsSync(run.path("config.yaml")) && (await readFile(run.path("config.yaml"), "utf8")) !== configText(config))
      throw typeError("RESUME", `--resume: ${run.path("config.yaml")} differs from this configuration, and a run goes on only as it began`);
    await writeFileDurably(run.path("config.yaml"), configText(config));
    if (existsSync(run.path("stages.json"))) {
      const { stages, metricsBytes } = JSON.parse(await readFile(run.path("stages.json"), "utf8")) as { stages: StageResult[]; metricsBytes: number };
      run.done.push(...stages);
      run.metricsBytes = metricsBytes;
    }
    return run;
  }

  path(...parts: string[]): string {
    return join(this.folder, ...parts);
  }

  /** Appends a line to metrics.jsonl. */
  async log(metrics: { stage: string; step: number } & Record<string, unknown>): Promise<void> {
    const line = JSON.stringify(metrics) + "\n";
    this.metricsBytes += Buffer.byteLength(line);
    await appendFile(this.path("metrics.jsonl"), line);
  }

  private async dropMetricsAfter(bytes: number): Promise<void> {
    this.metricsBytes = bytes;
    if (existsSync(this.path("metrics.jsonl"))) await truncate(this.path("metrics.jsonl"), bytes);
  }

  /** Runs a stage, unless an earlier run has finished it. */
  async stage<T extends Record<string, unknown>>(name: string, work: () => Promise<T>): Promise<T> {
    const before = this.done.find((stage) => stage.name === name);
    if (before) return before.result as T;
    const start = performance.now();
    const result = await work();
    this.done.push({ name, seconds: (performance.now() - start) / 1000, peakBytes: this.device.memory().peak, result });
    await writeFileDurably(this.path("stages.json"), JSON.stringify({ stages: this.done, metricsBytes: this.metricsBytes }, null, 2));
    await rm(this.path("checkpoint.safetensors"), { force: true });
    return result;
  }

  /** The checkpoint of the running stage. */
  checkpoint(stage: string, parts: CheckpointParts): Checkpoint {
    return new Checkpoint(this.path("checkpoint.safetensors"), stage, parts, this.config.checkpoint.every, {
      bytes: () => this.metricsBytes,
      restore: (bytes) => this.dropMetricsAfter(bytes),
    });
  }
}

export interface CheckpointParts {
  models: Record<string, Transformer>;
  optimizers: Record<string, AdamW>;
  /** Numbers beside the weights. */
  state?: { get(): Record<string, unknown>; set(state: Record<string, unknown>): void };
}

/** Weights, moments and counters of a training loop in one file, written beside, synced, then renamed. */
export class Checkpoint {
  private last = performance.now();

  constructor(
    private readonly file: string,
    private readonly stage: string,
    private readonly parts: CheckpointParts,
    private readonly every: number,
    private readonly metrics: { bytes(): number; restore(bytes: number): Promise<void> },
  ) {}

  /** Restores what the file holds of this stage, if anything; metrics of steps that will be done again are dropped. */
  async restore(): Promise<void> {
    const stored = existsSync(this.file) ? await readSafetensorsFile(this.file) : undefined;
    if (stored?.metadata.stage !== this.stage) return this.metrics.restore(this.metrics.bytes());
    const { tensors, metadata } = stored;
    const { steps, state, metricsBytes } = JSON.parse(metadata.counters) as {
      steps: Record<string, number>;
      state: Record<string, unknown>;
      metricsBytes: number;
    };
    for (const [key, model] of Object.entries(this.parts.models))
      for (const [name, { value }] of model.parameters) value.write(tensors.get(`${key}/${name}`)!.data);
    for (const [key, optimizer] of Object.entries(this.parts.optimizers)) {
      const prefix = `${key}:`;
      optimizer.restore(
        steps[key],
        new Map([...tensors].filter(([name]) => name.startsWith(prefix)).map(([name, tensor]) => [name.slice(prefix.length), tensor])),
      );
    }
    this.parts.state?.set(state);
    await this.metrics.restore(metricsBytes);
  }

  /** Saves if `checkpoint.every` seconds have passed since the last time. Call it between steps. */
  async due(): Promise<void> {
    if ((performance.now() - this.last) / 1000 < this.every) return;
    await this.save();
    this.last = performance.now();
  }

  async save(): Promise<void> {
    const tensors = new Map<string, Writable>();
    for (const [key, model] of Object.entries(this.parts.models))
      for (const [name, { value }] of model.parameters) tensors.set(`${key}/${name}`, { shape: value.shape, data: await value.read() });
    for (const [key, optimizer] of Object.entries(this.parts.optimizers))
      for (const [name, { shape, data }] of await optimizer.state()) tensors.set(`${key}:${name}`, { shape, data: data });
    const counters = JSON.stringify({
      steps: Object.fromEntries(Object.entries(this.parts.optimizers).map(([key, { steps }]) => [key, steps])),
      state: this.parts.state?.get() ?? {},
      metricsBytes: this.metrics.bytes(),
    });
    await writeSafetensors(this.file, tensors, { stage: this.stage, counters });
  }
}
