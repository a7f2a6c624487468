import { styleText } from "node:util";
import { visible } from "../device/errors.js";

/** One stage's bar. */
export interface Bar {
  /** n more units are done; `note` is shown beside the rate. */
  advance(n: number, note?: string): void;
  /** The stage has ended; `summary` stays on its line. */
  done(summary?: string): void;
}

export interface Progress {
  /** @param unit what is counted, in the plural */
  stage(name: string, total: number, unit: string): Bar;
}

export const silent: Progress = { stage: () => ({ advance: () => undefined, done: () => undefined }) };

const WIDTH = 24;
const REDRAW = 100; // ms
const LINE_EVERY = 10_000; // ms, where the output is no terminal

/**
 * Bars with rate and time left on a terminal; elsewhere a plain line now and then. Writes to
 * stderr.
 */
export function progressTo(output: NodeJS.WriteStream = process.stderr): Progress {
  return {
    stage(name, total, unit) {
      const start = performance.now();
      let first: { at: number; count: number } | undefined; // what was done at once (a resumed run) has no rate
      let count = 0;
      let shown = output.isTTY ? -Infinity : start - LINE_EVERY + 2000;
      let note = "";
      const line = (width: number) => {
        const now = performance.now();
        const rate = first && now > first.at ? (1000 * (count - first.count)) / (now - first.at) : 0;
        const left = rate > 0 && count < total ? `, ${duration((total - count) / rate)} left` : "";
        const figures = `${count}/${total} ${unit}${rate > 0 ? `, ${rate >= 10 ? rate.toFixed(0) : rate.toFixed(1)}/s` : ""}${left}${note ? `  ${note}` : ""}`;
        return visible(`${name.padEnd(14)} ${bar(total > 0 ? count / total : 1)} ${figures}`).slice(0, width);
      };
      const show = (force: boolean) => {
        const now = performance.now();
        if (!force && now - shown < (output.isTTY ? REDRAW : LINE_EVERY)) return;
        shown = now;
        output.write(output.isTTY ? `\r\x1b[K${line((output.columns || 100) - 1)}` : `${line(160)}\n`);
      };
      if (output.isTTY) show(true);
      else output.write(`${name.padEnd(14)} started, ${total} ${unit}\n`);
      return {
        advance(n, text = note) {
          count += n;
          note = text;
          first ??= { at: performance.now(), count };
          show(false);
        },
        done(summary = note) {
          const text = visible(
            `${name.padEnd(14)} ${duration((performance.now() - start) / 1000).padStart(6)}  ${summary}`,
          );
          output.write(output.isTTY ? `\r\x1b[K${styleText("green", "done")} ${text}\n` : `${text}\n`);
        },
      };
    },
  };
}

function bar(share: number): string {
  const filled = Math.round(Math.min(1, share) * WIDTH);
  return `${"\u2588".repeat(filled)}${"\u2591".repeat(WIDTH - filled)}`;
}

/** 0:07, 2:31, 1:02:03 */
export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}
