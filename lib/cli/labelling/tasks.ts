import { rowsOf } from "../../data/jsonl.js";
import type { Row } from "../../data/row.js";
import { task, type Task } from "../../data/labelling.js";
import { pairsOf } from "../../data/labels.js";
import { endsOf } from "../../data/preferences.js";
import { textsOf, type Text, type Texts } from "../../data/texts.js";

/**
 * What a file gives people to compare: pairs of the completions of a prompt or, with a size above
 * 2, so many of them at once. Lines of `rlhf collect`, or with chosen and rejected, which are
 * compared again. Equal and empty texts are left out.
 * @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`
 */
export async function tasksOf(
  file: string,
  { pairs, size }: { pairs: "all" | "disjoint"; size: number },
): Promise<Task[]> {
  const tasks: Task[] = [];
  const groups = new Map<string, { prompt: Text; ends: Task["ends"]; completions: Map<string, Text> }>();
  for await (const row of rowsOf(file)) {
    if (row.has("chosen")) {
      const texts = textsOf(row, ["chosen", "rejected"], { implicit: true });
      const { prompt, completions } = texts;
      if (JSON.stringify(completions[0]) !== JSON.stringify(completions[1]))
        tasks.push(task(prompt, completions, writtenEnds(row, texts)));
      continue;
    }
    if (row.value.completion === "") continue;
    const texts = textsOf(row, ["completion"]);
    const {
      prompt,
      completions: [completion],
    } = texts;
    const ends = writtenEnds(row, texts);
    const key = JSON.stringify([prompt, ends]);
    let group = groups.get(key);
    if (!group) groups.set(key, (group = { prompt, ends, completions: new Map() }));
    group.completions.set(JSON.stringify(completion), completion);
  }
  for (const { prompt, ends, completions } of groups.values()) {
    const texts = [...completions.values()];
    if (size === 2)
      for (const [i, j] of pairsOf(texts.length, pairs)) tasks.push(task(prompt, [texts[i], texts[j]], ends));
    else for (let i = 0; i + 1 < texts.length; i += size) tasks.push(task(prompt, texts.slice(i, i + size), ends));
  }
  return tasks;
}

/**
 * What a preference must say of its texts; of a conversation, which is rendered when it is read,
 * nothing.
 */
const writtenEnds = (row: Row, texts: Texts<Text>): Task["ends"] =>
  typeof texts.prompt === "string" ? endsOf(row, texts) : {};
