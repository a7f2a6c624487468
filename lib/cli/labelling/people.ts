import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { writeJsonl } from "../../data/jsonl.js";
import { LabelLog } from "../../data/label_log.js";
import { Labelling, OVERALL } from "../../data/labelling.js";
import { typeError } from "../../device/errors.js";
import type { Config } from "../schema.js";
import { tasksOf } from "./tasks.js";

export interface PeopleOptions {
  /** Completions to compare. */
  data: string;
  /** Preferences to write; the log of labels stands beside them. */
  out: string;
  ui: boolean;
  tty: boolean;
  annotator: string;
  port: number;
}

/** The log of labels of a file of preferences. */
export const logFile = (out: string): string => `${out.replace(/\.jsonl$/, "")}.labels.jsonl`;

/** People compare completions, in a browser or at the terminal; what they have said so far is written as preferences at the end. */
export async function labelByPeople({ label, seed }: Pick<Config, "label" | "seed">, { data, out, ui, tty, annotator, port }: PeopleOptions): Promise<void> {
  if (ui && tty) throw typeError("CONFIG", "--ui and --tty: wanted one of them");
  const tasks = await tasksOf(data, label);
  await mkdir(dirname(out), { recursive: true });
  if (existsSync(out) && !existsSync(logFile(out)))
    throw typeError("FILE", `--out: ${out} is there without ${logFile(out)}, so it holds no labels of people; name another`);
  const log = await LabelLog.open(logFile(out));
  const criteria = label.criteria.length > 0 ? label.criteria : [OVERALL];
  try {
    const labelling = new Labelling(tasks, log, { criteria, twice: label.twice, seed });
    if (tty) {
      const { labelAtTerminal } = await import("./tty.js");
      await labelAtTerminal(labelling, annotator);
    } else {
      const { serveLabels } = await import("./server.js");
      const server = await serveLabels(labelling, port);
      console.log(
        `${tasks.length} comparisons at\n\n  ${server.address}\n\nKeep the address to yourself: whoever has it can label. Ctrl-C ends and writes ${out}.`,
      );
      await new Promise<void>((resolve) => {
        for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => resolve());
      });
      await server.close();
    }
    const rows = labelling.preferences();
    await writeJsonl(out, rows);
    console.log(`${out}: ${rows.length} comparisons`);
  } finally {
    await log.close();
  }
}
