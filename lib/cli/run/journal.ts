import { appendFileSync, closeSync, fdatasyncSync, ftruncateSync, openSync, readFileSync } from "node:fs";
import { writingNow } from "../../files/durable.js";
import type { Completion } from "../../model/generate.js";
import type { Interrupt } from "./interrupt.js";
import { heldEnd, sealed, sealedLines } from "./seal.js";
import { warn } from "../terminal.js";

type Saved = Pick<Completion, "index" | "sample" | "stopped"> &
  Record<"completion" | "logp" | "truncatedLogp", number[]>;

const SYNC_EVERY = 1000; // ms

/**
 * Completions as they end, a line with its checksum each: a run that is killed while it samples
 * draws none of them twice.
 */
export class Journal {
  private readonly saved = new Map<string, Saved>();
  private readonly file: number;
  private synced = performance.now();

  /**
   * Takes up what the file holds. What a damaged line held is sampled again, to the same bits; a
   * last line that was cut off is dropped.
   */
  constructor(
    private readonly path: string,
    private readonly interrupt: Interrupt,
  ) {
    this.file = writingNow(path, () => openSync(path, "a+"));
    const content = writingNow(path, () => readFileSync(this.file));
    for (const { value, fault } of sealedLines<Saved>(content, path))
      if (value) this.saved.set(`${value.index} ${value.sample}`, value);
      else warn(`${fault.message}; what it held is sampled again`);
    writingNow(path, () => ftruncateSync(this.file, heldEnd(content)));
  }

  /** The completion of this request, if an earlier run has drawn it. */
  find({ prompt, index, sample }: Pick<Completion, "prompt" | "index" | "sample">): Completion | undefined {
    const saved = this.saved.get(`${index} ${sample}`);
    if (!saved) return undefined;
    const { completion, logp, truncatedLogp, stopped } = saved;
    return {
      prompt,
      index,
      sample,
      completion: Int32Array.from(completion),
      logp: Float32Array.from(logp),
      truncatedLogp: Float32Array.from(truncatedLogp),
      stopped,
    };
  }

  /** @throws Interrupted if the run was asked to stop */
  add({ index, sample, completion, logp, truncatedLogp, stopped }: Completion): void {
    const line: Saved = {
      index,
      sample,
      completion: [...completion],
      logp: [...logp],
      truncatedLogp: [...truncatedLogp],
      stopped,
    };
    writingNow(this.path, () => {
      appendFileSync(this.file, `${sealed(line)}\n`);
      if (performance.now() - this.synced <= SYNC_EVERY && !this.interrupt.asked) return;
      fdatasyncSync(this.file);
      this.synced = performance.now();
    });
    this.interrupt.check("what was sampled is saved");
  }

  [Symbol.dispose](): void {
    closeSync(this.file);
  }
}
