import type { Budget } from "./budget.js";

// What the operations of a template take, in units of a Budget: at least the bytes that they make
// and the characters that they read.

/** A value of the template's, by the library's names: StringValue, ArrayValue, ObjectValue, ... */
export interface Value {
  type: string;
  value: unknown;
}

/** An item of a list that is made: the value, and its place. */
export const ITEM = 64;
const ENTRY = 128; // of a mapping, with its key
const ESCAPED = 6; // characters of JSON for one

const isText = ({ type }: Value) => type === "StringValue";
const isList = ({ type }: Value) => type === "ArrayValue" || type === "TupleValue";
const isMapping = ({ value }: Value) => value instanceof Map;

const list = ({ value }: Value) => value as Value[];
const lengthOf = (value: Value | undefined) => (value && isText(value) ? (value.value as string).length : 0);

/** Whether a value has methods that may take long. */
export const hasMethods = (value: Value): boolean => isText(value) || isMapping(value);

/** Cost of a copy that shares the parts. */
export function shallow(value: Value): number {
  if (isText(value)) return lengthOf(value);
  if (isList(value)) return 8 * list(value).length;
  return isMapping(value) ? ENTRY * (value.value as Map<string, Value>).size : 0;
}

/** Rounds of a loop over a value. */
export const rounds = (value: Value): number =>
  isList(value) ? list(value).length : isMapping(value) ? (value.value as Map<string, Value>).size : 0;

/** Cost of a slice. A text becomes a list of its characters first. */
export const sliced = (value: Value): number => (isText(value) ? ITEM * lengthOf(value) : 2 * shallow(value));

/** Cost of a search for `part` characters, at worst with backtracking. */
const search = (length: number, part: number) => length * (1 + part / 16);

/** Characters of what a template is given, and a little for each part. */
export function given(input: unknown): number {
  let characters = 0;
  const left = [input];
  for (let value = left.pop(); value !== undefined; value = left.pop()) {
    characters += typeof value === "string" ? value.length : 8;
    if (typeof value === "object" && value !== null) for (const part of Object.values(value)) left.push(part ?? 0);
  }
  return characters;
}

/**
 * Charges a value as text. Lists may hold one value many times, or themselves.
 * @param each units for each character
 * @param indent characters before each part, for each level
 */
export function text(budget: Budget, whole: Value, each = 1, indent = 0): void {
  if (isText(whole)) return budget.spend(each * lengthOf(whole));
  const left: [Value, number][] = [[whole, 1]];
  for (let next = left.pop(); next; next = left.pop()) {
    const [value, depth] = next;
    budget.spend(16 + each * lengthOf(value) + indent * depth);
    if (isList(value)) {
      budget.spend(shallow(value));
      for (const part of list(value)) left.push([part, depth + 1]);
    } else if (isMapping(value))
      for (const [key, part] of value.value as Map<string, Value>) {
        budget.spend(16 + each * key.length);
        left.push([part, depth + 1]);
      }
  }
}

/** Charges an operator before it works. */
export function operation(budget: Budget, operator: string, left: Value, right: Value): void {
  switch (operator) {
    case "+":
    case "~":
      if (operator === "+" && isList(left) && isList(right)) return budget.spend(shallow(left) + shallow(right));
      text(budget, left);
      return text(budget, right);
    case "==":
    case "!=":
      if (isText(left) && isText(right)) return budget.spend(Math.min(lengthOf(left), lengthOf(right)));
      // a list is compared as text
      if (isList(left) !== isList(right)) for (const one of [left, right]) text(budget, one);
      return;
    case "in":
    case "not in":
      if (isText(right)) budget.spend(search(lengthOf(right), lengthOf(left)));
      if (isList(right)) {
        budget.spend(shallow(right));
        for (const part of list(right)) if (lengthOf(part) === lengthOf(left)) budget.spend(lengthOf(part));
      }
  }
}

/** Charges a method of a text or a mapping before it works. */
export function method(budget: Budget, name: string, object: Value, args: readonly Value[]): void {
  if (isMapping(object)) return mapping(budget, name, object);
  const length = lengthOf(object);
  const texts = args.flatMap((one) => (isList(one) ? list(one) : [one]));
  budget.spend(3 * length + texts.reduce((sum, one) => sum + search(length, lengthOf(one)), 0));
  if (name === "split")
    budget.spend(ITEM * (1 + (args[0] && isText(args[0]) ? occurrences(object, args[0]) : spaces(object))));
  if (name === "replace" && args.length >= 2) budget.spend(occurrences(object, args[0]) * lengthOf(args[1]));
}

function mapping(budget: Budget, name: string, object: Value): void {
  if (name === "get") return;
  budget.spend(shallow(object));
  if (name === "dictsort") text(budget, object, order((object.value as Map<string, Value>).size));
}

/** Charges a filter before it works. */
export function filter(budget: Budget, name: string, operand: Value, args: readonly Value[]): void {
  const most = args.reduce(
    (sum, one) =>
      sum +
      (isList(one)
        ? list(one).reduce((n, part) => n + lengthOf(part), 0)
        : lengthOf(one) || Math.abs(Number(one.value)) || 0),
    0,
  );
  if (name === "tojson") return text(budget, operand, ESCAPED, most);
  if (isText(operand)) {
    if (name === "replace") return method(budget, name, operand, args);
    if (name === "indent") budget.spend((1 + occurrences(operand, { type: "StringValue", value: "\n" })) * (4 + most));
    if (name === "join") budget.spend(lengthOf(operand) * (ITEM + most));
    return budget.spend(3 * lengthOf(operand));
  }
  if (isMapping(operand)) return mapping(budget, name, operand);
  if (!isList(operand) || ["length", "first", "last", "list", "safe", "default"].includes(name)) return;
  const { length } = list(operand);
  budget.spend(
    shallow(operand) +
      (["sort", "map", "join", "selectattr", "rejectattr"].includes(name) ? length * (16 + most) * order(length) : 0),
  );
  const reads =
    ["join", "string", "sort", "unique"].includes(name) ||
    args.some(({ value }) => value === "lower" || value === "upper");
  if (reads) text(budget, operand, name === "sort" ? order(length) : 1);
}

/** How often a sort compares each part, about. */
const order = (length: number) => 1 + Math.ceil(Math.log2(1 + length));

function occurrences({ value }: Value, part: Value): number {
  const [whole, sought] = [value as string, isText(part) ? (part.value as string) : ""];
  if (sought === "") return whole.length + 1;
  let count = 0;
  for (let at = whole.indexOf(sought); at >= 0; at = whole.indexOf(sought, at + sought.length)) count++;
  return count;
}

/** Characters that may be white space. */
function spaces({ value }: Value): number {
  const whole = value as string;
  let count = 0;
  for (let i = 0; i < whole.length; i++) {
    const code = whole.charCodeAt(i);
    if (code <= 0x20 || code === 0xa0 || code >= 0x1680) count++;
  }
  return count;
}
