import { Document, isMap, isNode, isScalar, isSeq, LineCounter, parse, parseDocument, stringify } from "yaml";
import type { z } from "zod";
import { brief, shown, typeError } from "../../device/errors.js";
import { readWithin } from "../../files/sums.js";
import { meaningOf, nearest, valueAt, wanted } from "../../rlhf/options.js";
import { ownSections, rules, schema, usedOnlyWhen, type Config } from "./schema.js";

// The YAML library takes time that grows as the square of a file's keys and anchors. With this many
// bytes that is under a second.
const MOST_BYTES = 2 ** 16;

type Path = (string | number)[];

/** A place of a configuration, for messages: the file with line and column, or the command line. */
type Where = (path: Path) => string;

/**
 * Reads a configuration: defaults, then the YAML file, then `--set` overrides.
 * @throws TypeError `CONFIG` that names the key, its place, and for an unknown one the nearest
 *   known
 */
export async function readConfig(file: string | undefined, sets: readonly string[] = []): Promise<Config> {
  const lines = new LineCounter();
  const text =
    file === undefined
      ? ""
      : await readWithin(file, MOST_BYTES).then(String, (error: Error) => {
          throw typeError("CONFIG", `--config ${file}: ${error.message}`);
        });
  const document = parsed(text, file, lines);
  const [fault] = document.errors;
  if (fault) throw typeError("CONFIG", `${file}: ${fault.message}`);
  if (document.contents !== null && !isMap(document.contents))
    throw typeError("CONFIG", `${file}: it holds no options, wanted "name: value" lines`);
  const overridden = new Map(sets.map((set) => override(document, set)));
  const where: Where = (path) => overridden.get(path.join(".")) ?? place(document, lines, path, file);
  let options: Record<string, unknown>;
  try {
    options = (document.toJS() ?? {}) as Record<string, unknown>;
  } catch (error) {
    throw typeError("CONFIG", `${file}: ${(error as Error).message}`); // aliases without end
  }
  return checked(options, where);
}

function parsed(text: string, file: string | undefined, lineCounter: LineCounter): Document.Parsed {
  try {
    return parseDocument(text, { lineCounter, logLevel: "error" });
  } catch (error) {
    throw typeError("CONFIG", `${file}: ${(error as Error).message}`); // nested too deeply
  }
}

/** A configuration as YAML: the same text for the same options. */
export const configText = (config: Config): string => stringify(config);

/**
 * Whether a text is what `configText` gave of some configuration. The sections of algorithms may be
 * those of another version's list.
 */
export function isConfigText(text: string): boolean {
  if (text.length > MOST_BYTES) return false;
  try {
    const options = parse(text) as Config;
    return Object.keys(ownSections).every((section) => section in options) && configText(options) === text;
  } catch {
    return false; // no YAML
  }
}

/** Whether a file, read as `readConfig` does, gives this configuration. */
export async function means(file: string, config: Config): Promise<boolean> {
  const read = await readConfig(file).catch(() => undefined);
  return read !== undefined && configText(read) === configText(config);
}

/** Every option with its default and what it means, as YAML that can be edited. */
export async function documentedDefaults(): Promise<string> {
  const document = new Document(await readConfig(undefined));
  for (const { name, fields } of sections)
    for (const [option, description] of fields) {
      const value = document.getIn([name, option], true);
      if (isSeq(value)) value.flow = true;
      if (description && isNode(value)) value.comment = ` ${description}`;
    }
  return document.toString({ lineWidth: 0 });
}

function override(document: Document, set: string): [key: string, where: string] {
  const equals = set.indexOf("=");
  if (equals < 1) throw typeError("CONFIG", `--set ${set}: wanted name=value, as in --set ppo.klCoef=0.1`);
  const key = set.slice(0, equals).trim();
  const value = parsed(set.slice(equals + 1), `--set ${brief(set)}`, new LineCounter());
  if (value.errors.length > 0) throw typeError("CONFIG", `--set ${set}: ${value.errors[0].message}`);
  try {
    document.setIn(key.split("."), value.contents);
  } catch {
    throw typeError("CONFIG", `--set ${set}: "${key}" goes through a value that has no options`);
  }
  return [key, `--set ${set}`];
}

function place(document: Document, lines: LineCounter, path: Path, file = "the configuration"): string {
  for (let length = path.length; length > 0; length--) {
    const parent = length === 1 ? document.contents : document.getIn(path.slice(0, length - 1), true);
    if (!isMap(parent)) continue;
    const pair = parent.items.find(({ key }) => isScalar(key) && key.value === path[length - 1]);
    const range = isScalar(pair?.key) ? pair.key.range : undefined;
    if (range) return `${file}:${lines.linePos(range[0]).line}`;
  }
  return file;
}

function checked(given: Record<string, unknown>, where: Where): Config {
  const result = schema.safeParse(given);
  if (!result.success) throw typeError("CONFIG", message(result.error.issues[0], given, where));
  const config = result.data as unknown as Config;
  const isGiven = (option: string) => valueAt(given, option.split(".")) !== undefined;
  for (const { options, when, because } of usedOnlyWhen)
    for (const option of options)
      if (isGiven(option) && !when(config))
        throw typeError("CONFIG", `${where(option.split("."))}: ${option} has no use here: ${because}`);
  for (const { option, holds, wanted } of rules)
    if (!holds(config)) {
      const value = valueAt(config, option.split("."));
      throw typeError("CONFIG", `${where(option.split("."))}: ${option} is ${String(value)}, wanted ${wanted}`);
    }
  return config;
}

function message(issue: z.core.$ZodIssue, given: unknown, where: Where): string {
  const path = issue.path as Path;
  if (issue.code === "unrecognized_keys") {
    const known = keysAt(path);
    const [key] = issue.keys;
    const full = [...path, key].join(".");
    const elsewhere = allKeys().find((other) => other.endsWith(`.${key}`));
    const close = nearest(key, known);
    const hint = close ? [...path, close].join(".") : (elsewhere ?? `one of ${known.join(", ")}`);
    return `${where([...path, key])}: there is no option "${full}", did you mean ${hint}?`;
  }
  return `${where(path)}: ${path.join(".")} is ${shown(valueAt(given, path))}, wanted ${wanted(issue)}`;
}

const sections = Object.entries(schema.shape).map(([name, type]) => {
  const inner = "unwrap" in type ? (type.unwrap() as { shape?: object }) : undefined;
  const fields = Object.entries((inner?.shape ?? {}) as Record<string, z.ZodType>).map(
    ([option, type]) => [option, meaningOf(type)] as const,
  );
  return { name, fields, options: fields.map(([option]) => option) };
});

const keysAt = (path: Path): string[] =>
  path.length === 0 ? sections.map(({ name }) => name) : (sections.find(({ name }) => name === path[0])?.options ?? []);

const allKeys = () => sections.flatMap(({ name, options }) => options.map((option) => `${name}.${option}`));
