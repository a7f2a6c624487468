import { z } from "zod";
import { algorithms, type Algorithm } from "../rlhf/algorithms.js";
import { meaningOf } from "../rlhf/options.js";
import { fileOptions } from "./files.js";

// The list of algorithms in words: for `rlhf algorithms`, and for the pages of the docs.

/** An option in words. */
export interface ListedOption {
  name: string;
  /** The default, as the configuration file has it: `.inf` for infinity. */
  default: unknown;
  range: string;
  meaning: string;
}

/** An algorithm in words. */
export interface ListedAlgorithm {
  name: string;
  title: string;
  source: string;
  /** What each role is. */
  models: Record<string, string>;
  options: ListedOption[];
}

const entries = Object.entries<Algorithm>(algorithms);

/** Every algorithm with its models and options. */
export const algorithmList = (): ListedAlgorithm[] =>
  entries.map(([name, entry]) => ({
    name,
    title: entry.title,
    source: entry.source,
    models: modelsOf(entry),
    options: optionsOf(entry),
  }));

/** The rows of the list for people: name, title, models, material, source. */
export const algorithmTable = (): string[][] =>
  entries.map(([name, entry]) => [
    name,
    entry.title,
    Object.keys(entry.models).join(" "),
    entry.material,
    entry.source.replace(/, arXiv.*/, ""),
  ]);

/** The roles of an algorithm in words. */
export function modelsOf({ models }: Algorithm): Record<string, string> {
  return Object.fromEntries(
    Object.entries(models).map(([role, { from, head, trained, orFunctions, when }]) => {
      const kind = `${trained ? "trained" : "frozen"} model${head === "score" ? " that gives scores" : ""}`;
      const instead = orFunctions ? ", or a file of reward functions" : "";
      return [role, `${kind}, from --${from}${instead}${when ? `; where ${plain(when.text)}` : ""}`];
    }),
  );
}

/** Words of an entry without the backquotes around options. */
const plain = (words: string) => words.replaceAll("`", "");

/** The options of an algorithm in words. */
export const optionsOf = ({ options }: Algorithm): ListedOption[] =>
  Object.entries(options.shape).map(([name, type]) => ({
    name,
    default: inYaml((type as z.ZodDefault).def.defaultValue),
    range: rangeOf(type),
    meaning: meaningOf(type) ?? "",
  }));

/** A value as the configuration file has it. */
const inYaml = (value: unknown): unknown => (value === Infinity ? ".inf" : value);

interface Schema {
  type?: string;
  const?: null;
  enum?: string[];
  anyOf?: Schema[];
  prefixItems?: Schema[];
  minimum?: number;
  exclusiveMinimum?: number;
  maximum?: number;
  exclusiveMaximum?: number;
}

/** What an option takes, in words. */
const rangeOf = (type: z.core.$ZodType): string =>
  inWords(z.toJSONSchema(type, { io: "input", unrepresentable: "any" }) as Schema);

function inWords(schema: Schema): string {
  if (schema.anyOf) return schema.anyOf.map(inWords).join(", or ");
  if (schema.enum) return schema.enum.join(", ");
  if (schema.prefixItems) return `${schema.prefixItems.length} values, each ${inWords(schema.prefixItems[0])}`;
  if (schema.type === "boolean") return "true, false";
  if ("const" in schema) return ".inf"; // no other literal is an option's value
  const { minimum, exclusiveMinimum, maximum, exclusiveMaximum } = schema;
  const isReal = (bound: number | undefined) => bound !== undefined && Math.abs(bound) < Number.MAX_SAFE_INTEGER;
  const words = [
    ...(isReal(minimum) ? [`from ${minimum}`] : []),
    ...(isReal(exclusiveMinimum) ? [`above ${exclusiveMinimum}`] : []),
    ...(isReal(maximum) ? [`to ${maximum}`] : []),
    ...(isReal(exclusiveMaximum) ? [`below ${exclusiveMaximum}`] : []),
  ];
  return `${schema.type === "integer" ? "a whole number" : "a number"} ${words.join(" ")}`.trim();
}

/**
 * The pages of the docs by their file names: a page for each algorithm, and a table of all.
 * @param claims what each algorithm reached in a run, by its name, as Markdown
 */
export function algorithmPages(claims: Readonly<Record<string, string>>): Record<string, string> {
  const pages = entries.map(([name, entry]) => [`${name}.md`, pageOf(name, entry, claims[name])]);
  return { "README.md": overview(), ...Object.fromEntries(pages) };
}

const markdown = (titles: string[], rows: string[][]): string =>
  [titles, titles.map(() => "---"), ...rows]
    .map((row) => `| ${row.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`)
    .join("\n");

const code = (text: string) => `\`${text}\``;

function overview(): string {
  const rows = entries.map(([name, { title, material, models, source }]) => [
    `[${name}](${name}.md)`,
    title,
    material,
    Object.keys(models).join(", "),
    source,
  ]);
  return `# Algorithms

Each algorithm is a command, \`rlhf NAME\`, and a section of the configuration. Each page has its claim, command,
models, options and curves. \`rlhf algorithms --json\` prints the same list.

${markdown(["name", "algorithm", "learns from", "models", "source"], rows)}
`;
}

function pageOf(name: string, entry: Algorithm, claim: string | undefined): string {
  const { title, about, source, saves, usedWhen, rules, charts } = entry;
  const files = fileOptions(entry);
  const command = files.filter(({ required }) => required).map(({ flags }) => flags);
  const models = Object.entries(modelsOf(entry)).map(([role, words]) => [
    role === saves ? `${role} (saved)` : role,
    words,
  ]);
  const options = optionsOf(entry).map((option) => [
    code(option.name),
    code(typeof option.default === "string" ? option.default : JSON.stringify(option.default)),
    option.range,
    option.meaning,
  ]);
  const notes = [
    ...usedWhen.map(({ options: all, because }) => `${all.map(code).join(", ")}: no use where ${because}.`),
    ...rules.map(({ option, wanted }) => `${code(option)}: ${wanted}.`),
  ];
  const parts = [
    `# ${title}`,
    `${about[0].toUpperCase()}${about.slice(1)}.`,
    `Source: ${source}.`,
    ...(claim ? [`## Claim`, claim] : []),
    `## Command`,
    `\`\`\`sh\nrlhf ${name} ${command.join(" ")}\n\`\`\``,
    markdown(
      ["option", "meaning"],
      files.map(({ flags, about: words, required }) => [code(flags), `${words}${required ? "" : " (optional)"}`]),
    ),
    `## Models`,
    markdown(["role", "what it is"], models),
    `## Options`,
    `Options stand in the section \`${name}\` of the configuration. \`--set ${name}.NAME=VALUE\` overrides one.`,
    markdown(["option", "default", "range", "meaning"], options),
    ...(notes.length > 0 ? [notes.map((note) => `- ${note}`).join("\n")] : []),
    `## Curves`,
    `The report of a run draws these.`,
    charts.map((chart) => `- ${chart.title}: ${chart.about}.`).join("\n"),
  ];
  return `${parts.join("\n\n")}\n`;
}
