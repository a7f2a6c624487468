/**
 * A Markdown page's prose: its paragraphs and list items without code, tables, headings, pictures
 * and comments.
 */
export function blocks(markdown: string): string[] {
  const prose = markdown
    .replace(/^```.*?^```$/gms, "\n")
    .replace(/<!--.*?-->/gs, "\n")
    .replace(/^(\||#|!\[).*$/gm, "\n");
  return prose
    .split(/\n\s*\n|\n(?=\s*(?:-|\d+\.) )/)
    .map((block) =>
      block
        .replace(/^\s*(?:-|\d+\.) /, "")
        .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
        .replace(/\*\*/g, "")
        .replace(/\s+/g, " ")
        .trim(),
    )
    .filter((block) => block !== "");
}

/** Sentences with how many words each has. What stands in backticks is one word. */
export function sentences(markdown: string): { text: string; words: number }[] {
  return blocks(markdown)
    .map((block) => block.replace(/`[^`]*`/g, (code) => code.replace(/[\s.!?]/g, "_")))
    .flatMap((block) => block.split(/(?<=[.!?])\s+/))
    .map((text) => ({ text, words: text.split(/\s+/).filter((word) => /[\p{L}\p{N}_]/u.test(word)).length }));
}

/** The sections of a page under headings of this level, by their titles. */
export function sections(markdown: string, level: number): Map<string, string> {
  const [, ...parts] = markdown.split(new RegExp(`^${"#".repeat(level)} `, "m"));
  return new Map(
    parts.map((part) => {
      const [title] = part.split("\n", 1);
      return [title, part.slice(title.length).split(new RegExp(`^#{1,${level}} `, "m"))[0]];
    }),
  );
}
