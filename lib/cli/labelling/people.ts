import { once } from "node:events";
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { writeJsonl } from "../../data/jsonl.js";
import { LabelLog } from "../../data/label_log.js";
import { Labelling } from "../../data/labelling.js";
import { OVERALL } from "../../data/votes.js";
import { typeError } from "../../device/errors.js";
import { makeFolder } from "../../files/durable.js";
import { Ending } from "../run/interrupt.js";
import type { Config } from "../config/schema.js";
import { say, warn } from "../terminal.js";
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

/**
 * People compare completions, in a browser or at the terminal. What they have said so far is
 * written as preferences at the end. It is derived from the log, so after an end that did not come
 * to it, the next start writes it.
 */
export async function labelByPeople(
  { label, seed }: Pick<Config, "label" | "seed">,
  { data, out, ui, tty, annotator, port }: PeopleOptions,
): Promise<void> {
  if (ui && tty) throw typeError("CONFIG", "--ui and --tty: wanted one of them");
  const tasks = await tasksOf(data, label);
  await makeFolder(dirname(out));
  if (existsSync(out) && !existsSync(logFile(out)))
    throw typeError(
      "FILE",
      `--out: ${out} is there without ${logFile(out)}, so it holds no labels of people; name another`,
    );
  using ending = new Ending(
    `${out} is being written, and every label is in ${logFile(out)}: the next start writes it too`,
  );
  const log = await LabelLog.open(logFile(out));
  if (log.torn) warn(`${logFile(out)}: a line that was cut off is dropped; nobody was told that it was saved`);
  const criteria = label.criteria.length > 0 ? label.criteria : [OVERALL];
  try {
    const labelling = new Labelling(tasks, log, { criteria, twice: label.twice, seed });
    const before = labelling.preferences();
    if (before.length > 0) await writeJsonl(out, before);
    if (tty) {
      const { labelAtTerminal } = await import("./tty.js");
      await labelAtTerminal(labelling, annotator, ending.asked);
    } else {
      const { serveLabels } = await import("./server.js");
      const server = await serveLabels(labelling, port);
      say(
        `${tasks.length} comparisons at\n\n  ${server.address}\n\nKeep the address to yourself: whoever has it can label. Ctrl-C ends and writes ${out}.`,
      );
      if (!ending.asked.aborted) await once(ending.asked, "abort");
      await server.close();
    }
    const rows = labelling.preferences();
    await writeJsonl(out, rows);
    say(`${out}: ${rows.length} comparisons`);
  } finally {
    await log.close();
  }
}
