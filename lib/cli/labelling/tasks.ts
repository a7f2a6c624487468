import { rowsOf } from "../../data/jsonl.js";
import { task, type Task } from "../../data/labelling.js";
import { pairsOf } from "../../data/labels.js";
import { textsOf, type Text } from "../../data/texts.js";

/**
 * What a file gives people to compare: pairs of the completions of a prompt or, with a size above 2, so many of them at once.
 * Lines of `rlhf collect`, or with chosen and rejected, which are compared again. Equal and empty texts are left out.
 * @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`
 */
export async function tasksOf(file: string, { pairs, size }: { pairs: "all" | "disjoint"; size: number }): Promise<Task[]> {
  const tasks: Task[] = [];
  const groups = new Map<string, { prompt: Text; completions: Map<string, Text> }>();
  for await (const row of rowsOf(file)) {
    if (row.has("chosen")) {
      const { prompt, completions } = textsOf(row, ["chosen", "rejected"], { implicit: true });
      if (JSON.stringify(completions[0]) !== JSON.stringify(completions[1])) tasks.push(task(prompt, completions));
      continue;
    }
    if (row.value.completion === "") continue;
    const {
      prompt,
      completions: [completion],
    } = textsOf(row, ["completion"]);
    const key = JSON.stringify(prompt);
    let group = groups.get(key);
    if (!group) groups.set(key, (group = { prompt, completions: new Map() }));
    group.completions.set(JSON.stringify(completion), completion);
  }
  for (const { prompt, completions } of groups.values()) {
    const texts = [...completions.values()];
    if (size === 2) tasks.push(...pairsOf(texts.length, pairs).map(([i, j]) => task(prompt, [texts[i], texts[j]])));
    else for (let i = 0; i + 1 < texts.length; i += size) tasks.push(task(prompt, texts.slice(i, i + size)));
  }
  return tasks;
}
