import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { typeError } from "../../device/errors.js";
import { native } from "../../device/native.js";
import { makeFolder, writing } from "../../files/durable.js";
import { readSafetensorsFile, writeSafetensors, type StoredTensor, type Writable } from "../../model/safetensors.js";
import type { Transformer } from "../../model/transformer.js";
import type { AdamW } from "../../rlhf/learn/optimizer.js";
import type { Config } from "../config/schema.js";
import type { Interrupt } from "./interrupt.js";
import { warn } from "../terminal.js";

export interface CheckpointParts {
  models: Record<string, Transformer>;
  optimizers: Record<string, AdamW>;
  /** Numbers beside the weights. */
  state?: { get(): Record<string, unknown>; set(state: Record<string, unknown>): void };
}

interface Counters {
  steps: Record<string, number>;
  state: Record<string, unknown>;
  metricsBytes: number;
}

interface Metrics {
  /** Syncs what was logged and tells its bytes. */
  sync(): Promise<number>;
  restore(bytes?: number): Promise<void>;
}

/** A stage's share of its expected time between checkpoints, where `checkpoint.every` is auto. */
const SHARE = 0.05;

/**
 * Weights, moments and counters of a training loop: `<stage>-<step>.safetensors`, the last few of
 * them.
 */
export class Checkpoint {
  private readonly start = performance.now();
  private last = this.start;
  private first: number | undefined;

  constructor(
    private readonly folder: string,
    private readonly stage: string,
    private readonly parts: CheckpointParts,
    private readonly options: Config["checkpoint"],
    private readonly metrics: Metrics,
    private readonly interrupt: Interrupt,
  ) {}

  /**
   * Restores the newest checkpoint of this stage that is whole, if there is one; metrics of steps
   * that will be done again are dropped. A damaged one is set aside and told of.
   * @throws TypeError `RESUME` if there are checkpoints and none is whole, or they follow another
   *   law of arithmetic
   */
  async restore(): Promise<void> {
    const names = await this.names();
    const faults: string[] = [];
    for (const name of names.toReversed()) {
      const file = join(this.folder, name);
      try {
        const stored = await readSafetensorsFile(file);
        if (!stored.verified)
          throw typeError("SAFETENSORS", `${file} is damaged, or an earlier version wrote it: it has no digest`);
        if (stored.metadata.law !== String(native.lawVersion))
          throw typeError(
            "RESUME",
            `${file} follows version ${stored.metadata.law} of the law of arithmetic, this build ${native.lawVersion}; wanted the same`,
          );
        await this.restoreFrom(file, stored.tensors, stored.metadata.counters);
        return;
      } catch (error) {
        if ((error as { code?: string }).code !== "SAFETENSORS") throw error;
        faults.push((error as Error).message);
        warn(`${(error as Error).message}; it is set aside, the one before it is tried`);
        await writing(file, () => rename(file, `${file}.damaged`));
      }
    }
    if (faults.length > 0)
      throw typeError(
        "RESUME",
        `no checkpoint of ${this.stage} is whole: ${faults.join("; ")}. Without ${this.folder} the stage begins anew`,
      );
    await this.metrics.restore();
  }

  private async names(): Promise<string[]> {
    const all = await readdir(this.folder).catch(() => []);
    return all.filter((name) => name.startsWith(`${this.stage}-`) && name.endsWith(".safetensors")).sort();
  }

  /** Everything is looked at before anything is written. */
  private async restoreFrom(file: string, tensors: ReadonlyMap<string, StoredTensor>, text: string): Promise<void> {
    const { steps, state, metricsBytes } = JSON.parse(text) as Counters;
    const found = (name: string, shape: readonly number[]): StoredTensor => {
      const tensor = tensors.get(name);
      if (tensor?.shape.join() !== shape.join())
        throw typeError(
          "RESUME",
          `${file}: ${name} is ${tensor ? `[${tensor.shape}]` : "missing"}, wanted [${shape}]: it is of another model`,
        );
      return tensor;
    };
    const weights = Object.entries(this.parts.models).flatMap(([key, model]) =>
      model.trained.map(({ name, value }) => ({ value, data: found(`${key}/${name}`, value.shape).data })),
    );
    const moments = Object.entries(this.parts.optimizers).map(([key, optimizer]) => ({
      optimizer,
      steps: steps[key],
      state: new Map(optimizer.names().map(({ name, shape }) => [name, found(`${key}:${name}`, shape)])),
    }));
    await this.metrics.restore(metricsBytes);
    for (const { value, data } of weights) value.write(data);
    for (const { optimizer, steps, state } of moments) optimizer.restore(steps, state);
    this.parts.state?.set(state);
  }

  /**
   * Saves if it is time. Call it between steps, after `step` of `steps`.
   * @throws Interrupted once it has saved, if the run was asked to stop
   */
  async due(step: number, steps: number): Promise<void> {
    this.first ??= step - 1;
    const now = performance.now();
    const [since, perStep] = [(now - this.last) / 1000, (now - this.start) / 1000 / (step - this.first)];
    const { every } = this.options;
    const isTime = every === "auto" ? since + perStep > SHARE * perStep * steps : since >= every;
    if (!isTime && !this.interrupt.asked) return;
    await this.save(step);
    this.last = performance.now();
    this.interrupt.check(`${this.stage} is saved at step ${step} of ${steps}`);
  }

  private async save(step: number): Promise<void> {
    const tensors = new Map<string, Writable>();
    for (const [key, model] of Object.entries(this.parts.models))
      for (const { name, value } of model.trained)
        tensors.set(`${key}/${name}`, { shape: value.shape, data: await value.read() });
    for (const [key, optimizer] of Object.entries(this.parts.optimizers))
      for (const [name, { shape, data }] of await optimizer.state()) tensors.set(`${key}:${name}`, { shape, data });
    const counters: Counters = {
      steps: Object.fromEntries(Object.entries(this.parts.optimizers).map(([key, { steps }]) => [key, steps])),
      state: this.parts.state?.get() ?? {},
      metricsBytes: await this.metrics.sync(),
    };
    await makeFolder(this.folder);
    const file = join(this.folder, `${this.stage}-${String(step).padStart(8, "0")}.safetensors`);
    await writeSafetensors(file, tensors, {
      stage: this.stage,
      law: String(native.lawVersion),
      counters: JSON.stringify(counters),
    });
    for (const name of (await this.names()).slice(0, -this.options.keep))
      await writing(this.folder, () => rm(join(this.folder, name)));
  }
}
