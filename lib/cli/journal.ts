import { closeSync, fdatasyncSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import type { Completion } from "../model/generate.js";
import type { Interrupt } from "./interrupt.js";

type Saved = Pick<Completion, "index" | "sample" | "stopped"> & Record<"completion" | "logp" | "truncatedLogp", number[]>;

const SYNC_EVERY = 1000; // ms

/** Completions as they end, a line each: a run that is killed while it samples draws none of them twice. */
export class Journal {
  private readonly saved = new Map<string, Saved>();
  private readonly file: number;
  private synced = performance.now();

  /** Takes up what the file holds, up to a line that was cut off. */
  constructor(
    path: string,
    private readonly interrupt: Interrupt,
  ) {
    this.file = openSync(path, "a+");
    const content = readFileSync(this.file);
    let end = 0;
    for (let next = content.indexOf(10); next >= 0; next = content.indexOf(10, end)) {
      try {
        const line = JSON.parse(content.toString("utf8", end, next)) as Saved;
        this.saved.set(`${line.index} ${line.sample}`, line);
      } catch {
        break;
      }
      end = next + 1;
    }
    ftruncateSync(this.file, end);
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
    const line: Saved = { index, sample, completion: [...completion], logp: [...logp], truncatedLogp: [...truncatedLogp], stopped };
    writeSync(this.file, `${JSON.stringify(line)}\n`);
    if (performance.now() - this.synced > SYNC_EVERY || this.interrupt.asked) {
      fdatasyncSync(this.file);
      this.synced = performance.now();
    }
    this.interrupt.check("what was sampled is saved");
  }

  [Symbol.dispose](): void {
    closeSync(this.file);
  }
}
