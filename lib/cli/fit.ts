import { typeError } from "../device/errors.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Transformer } from "../model/transformer.js";

/**
 * A model that an option names must have the head that its part wants, and a vocabulary for every id of the tokenizer.
 * @throws TypeError `MODEL` naming the option and its folder
 */
export function fit(
  option: string,
  folder: string,
  model: Transformer,
  head: Transformer["headKind"] | "any",
  tokenizer?: Tokenizer,
): void {
  const wrong = (what: string) => typeError("MODEL", `${option}: ${folder} ${what}`);
  if (head !== "any" && model.headKind !== head)
    throw wrong(
      head === "score" ? "has no score head, wanted a reward model" : "has a score head, wanted a language model",
    );
  const { vocabulary } = model.config;
  if (tokenizer && tokenizer.vocabularySize > vocabulary)
    throw wrong(
      `has a vocabulary of ${vocabulary}, the tokenizer has ids up to ${tokenizer.vocabularySize - 1}: it is of another model`,
    );
}
