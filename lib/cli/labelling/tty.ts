import { emitKeypressEvents, type Key } from "node:readline";
import { styleText } from "node:util";
import { annotatorName, LONGEST_REASON, MOST_SECONDS, type Answer } from "../../data/answers.js";
import type { Labelling, Shown } from "../../data/labelling.js";
import { OVERALL } from "../../data/votes.js";
import { visible } from "../../device/errors.js";
import type { Strength } from "../../data/answers.js";
import { transcript, type Text } from "../../data/texts.js";

/** A text for a terminal, which cannot command it. */
const plain = (text: Text) => visible(transcript(text).trim(), { lines: true });
const letter = (i: number) => String.fromCharCode(65 + i);
const help = (pair: boolean) =>
  pair
    ? "A B slightly better, shift: clearly   T tie   S skip   X flag   R reason   U undo   Q quit"
    : "letters, best first   = ties the next   backspace   enter when all are placed   S skip   X flag   R reason   U undo   Q quit";

/** Labels at a terminal, one key an answer, until nothing is left, Q or `asked` to end. */
export async function labelAtTerminal(labelling: Labelling, name: string, asked: AbortSignal): Promise<void> {
  const annotator = annotatorName(name);
  const { stdin: input, stdout: output } = process;
  const strong = (text: string) => (output.isTTY ? styleText("bold", text) : text);
  const faint = (text: string) => (output.isTTY ? styleText("dim", text) : text);
  const keys = keysOf(input, asked);
  try {
    for (
      let { shown, progress } = await labelling.view(annotator);
      shown;
      { shown, progress } = await labelling.view(annotator)
    ) {
      const { labels, wanted, mine, alpha } = progress;
      const alphas = Object.entries(alpha).flatMap(([criterion, value]) =>
        value === null ? [] : [`alpha ${criterion === OVERALL ? "" : `${criterion} `}${value.toFixed(2)}`],
      );
      const pair = shown.completions.length === 2;
      if (output.isTTY) output.write("\x1b[2J\x1b[H");
      output.write(
        `${faint([`${labels} of ${wanted} labels, ${mine} yours`, ...alphas].join("   "))}\n\n${plain(shown.prompt)}\n`,
      );
      shown.completions.forEach((text, i) => output.write(`\n${strong(`${letter(i)}.`)} ${plain(text)}\n`));
      output.write(`\n${faint(help(pair))}\n`);
      const start = performance.now();
      const answer = await ask(shown, labelling.criteria, keys, output);
      const seconds = Math.min(MOST_SECONDS, (performance.now() - start) / 1000);
      if (answer === "quit") return;
      if (answer === "undo") await labelling.undo(annotator);
      else await labelling.answer(annotator, shown.task, { ...answer, seconds });
    }
    output.write("Nothing left to compare.\n");
  } finally {
    await keys.return(undefined);
  }
}

type Said = Omit<Answer, "seconds"> | "undo" | "quit";

/** Reads keys until they make an answer. */
async function ask(
  { completions }: Shown,
  criteria: readonly string[],
  keys: Keys,
  output: NodeJS.WriteStream,
): Promise<Said> {
  const ranks: Record<string, number[]> = {};
  const strength: Record<string, Strength> = {};
  let reason = "";
  const finished = (kind: Answer["kind"]): Said => ({
    kind,
    ...(kind === "label" ? { ranks, strength } : {}),
    ...(reason ? { reason } : {}),
  });
  for (const criterion of criteria) {
    if (criterion !== OVERALL) output.write(`${criterion}? `);
    const groups: number[][] = [];
    let tying = false;
    while (!ranks[criterion]) {
      const { value: key, done } = await keys.next();
      if (done || key.name === "q" || (key.ctrl && (key.name === "c" || key.name === "d"))) return "quit";
      const place = key.name?.length === 1 ? key.name.charCodeAt(0) - 97 : -1;
      if (key.name === "u") return "undo";
      if (key.name === "s") return finished("skip");
      if (key.name === "x") return finished("flag");
      if (key.name === "r") {
        reason = await line("reason: ", keys, output);
      } else if (completions.length === 2) {
        if (place === 0 || place === 1) {
          ranks[criterion] = place === 0 ? [1, 2] : [2, 1];
          strength[criterion] = key.shift ? "clearly" : "slightly";
        } else if (key.name === "t" || key.sequence === "=") ranks[criterion] = [1, 1];
        else continue;
        output.write(`${strength[criterion] ? `${letter(place)} ${strength[criterion]}` : "tie"}\n`);
      } else {
        if (place >= 0 && place < completions.length && !groups.flat().includes(place)) {
          if (tying && groups.length > 0) groups.at(-1)!.push(place);
          else groups.push([place]);
          tying = false;
        } else if (key.sequence === "=") tying = true;
        else if (key.name === "backspace") {
          groups.at(-1)?.pop();
          if (groups.at(-1)?.length === 0) groups.pop();
          tying = false;
        } else if ((key.name === "return" || key.name === "enter") && groups.flat().length === completions.length)
          ranks[criterion] = ranksOf(groups);
        output.write(
          `${output.isTTY ? "\r\x1b[K" : "\n"}${groups.map((group) => group.map(letter).join(" = ")).join(" > ")}${tying ? " =" : ""}`,
        );
        if (ranks[criterion]) output.write("\n");
      }
    }
  }
  return finished("label");
}

/** The rank of each place, from groups of them, best first; those of a group are tied. */
function ranksOf(groups: readonly number[][]): number[] {
  const ranks: number[] = [];
  groups.forEach((group, at) => {
    for (const place of group) ranks[place] = 1 + groups.slice(0, at).flat().length;
  });
  return ranks;
}

/** Characters as people count them: a backspace takes one. */
const characters = new Intl.Segmenter();

async function line(prompt: string, keys: Keys, output: NodeJS.WriteStream): Promise<string> {
  let text = "";
  output.write(prompt);
  for (;;) {
    const { value: key, done } = await keys.next();
    if (done || key.name === "return" || key.name === "enter") break;
    if (key.name === "backspace") {
      text = [...characters.segment(text)]
        .slice(0, -1)
        .map(({ segment }) => segment)
        .join("");
      if (output.isTTY) output.write(`\r\x1b[K${prompt}${visible(text)}`);
    } else if (
      key.sequence &&
      !key.ctrl &&
      !/[\p{Cc}\p{Cs}]/u.test(key.sequence) &&
      text.length + key.sequence.length <= LONGEST_REASON
    ) {
      text += key.sequence;
      output.write(visible(key.sequence));
    }
  }
  output.write("\n");
  return text.trim();
}

type Keys = AsyncGenerator<Key, undefined>;

async function* keysOf(input: NodeJS.ReadStream, asked: AbortSignal): Keys {
  const waiting: Key[] = [];
  let wake = () => undefined as void;
  let ended = false;
  const onKey = (_: string | undefined, key: Key) => {
    waiting.push(key);
    wake();
  };
  const onEnd = () => {
    ended = true;
    wake();
  };
  if (asked.aborted) onEnd();
  asked.addEventListener("abort", onEnd);
  emitKeypressEvents(input);
  input.on("keypress", onKey).on("end", onEnd);
  if (input.isTTY) input.setRawMode(true);
  input.resume();
  try {
    for (;;) {
      const key = waiting.shift();
      if (key) yield key;
      else if (ended) return undefined;
      else await new Promise<void>((resolve) => (wake = resolve));
    }
  } finally {
    if (input.isTTY) input.setRawMode(false);
    asked.removeEventListener("abort", onEnd);
    input.off("keypress", onKey).off("end", onEnd).pause();
  }
}
