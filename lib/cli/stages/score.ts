import { rowsOf } from "../../data/jsonl.js";
import type { Row } from "../../data/row.js";
import { endsOf } from "../../data/preferences.js";
import { rendered, textsOf } from "../../data/texts.js";
import { longestSequence } from "../../model/config.js";
import type { Tokenizer } from "../../tokenizer/tokenizer.js";
import type { Transformer } from "../../model/transformer.js";
import type { Episode } from "../../rlhf/batch/episode.js";
import { scores } from "../../rlhf/measure/score.js";
import { probability } from "../../rlhf/reward/model.js";

const AT_ONCE = 256; // rows

/**
 * Rows with what a reward model says of them, at the token that ends a text, which a completion
 * gets unless it was sampled without. A completion gets its `score` and `r`, the probability that
 * it is preferred to a score of 0; a pair (a and b, or chosen and rejected) gets the `r` of both
 * and `p`, the probability that the first is preferred.
 */
export async function* scoreRows(model: Transformer, tokenizer: Tokenizer, file: string): AsyncGenerator<object> {
  let waiting: Row[] = [];
  for await (const row of rowsOf(file)) {
    waiting.push(row);
    if (waiting.length < AT_ONCE) continue;
    yield* await scored(model, tokenizer, waiting);
    waiting = [];
  }
  yield* await scored(model, tokenizer, waiting);
}

async function scored(model: Transformer, tokenizer: Tokenizer, rows: readonly Row[]): Promise<object[]> {
  const episodes: Episode[] = [];
  for (const row of rows) {
    const texts = textsOf(row, columnsOf(row), { implicit: row.has("chosen") });
    const { prompt, completions } = rendered(row, texts, () => tokenizer.chat);
    const ends = endsOf(row, texts);
    const begin = tokenizer.encodePrompt(prompt, ends);
    for (const completion of completions) {
      const episode = {
        prompt: begin,
        completion: tokenizer.encodeCompletion(completion, { open: ends.rendered || ends.sampled }),
      };
      const length = episode.prompt.length + episode.completion.length;
      const longest = longestSequence(model.config);
      if (length > longest)
        throw row.error(
          `prompt and completion have ${length} tokens, wanted at most ${longest}, the longest that the model takes`,
        );
      episodes.push(episode);
    }
  }
  const all = await scores(model, episodes);
  let at = 0;
  return rows.map((row) => {
    const columns = columnsOf(row);
    if (columns.length === 1) {
      const score = all[at++];
      return { ...row.value, score, r: probability(score) };
    }
    const [first, second] = [all[at++], all[at++]];
    return {
      ...row.value,
      [`r_${columns[0]}`]: probability(first),
      [`r_${columns[1]}`]: probability(second),
      p: probability(first - second),
    };
  });
}

function columnsOf(row: Row): string[] {
  if (row.has("a") && row.has("b")) return ["a", "b"];
  return row.has("chosen") || row.has("rejected") ? ["chosen", "rejected"] : ["completion"];
}
