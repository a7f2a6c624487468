import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { Budget } from "./budget.js";
import * as costs from "./template_costs.js";

// Jinja by @huggingface/jinja, whose interpreter calls `evaluate` for each node of a template. Here
// each call is charged to a budget, and what an operation makes is charged before it is made: one
// of them may double a text, or multiply two.

/** A node of the library's syntax tree. */
interface Node {
  type: string;
  /** It is written out, as text. */
  written?: boolean;
  /** Nodes within. */
  size?: number;
}

interface Named extends Node {
  value: string;
}
interface Member extends Node {
  object: Node;
  property: Named;
  computed: boolean;
}
interface Binary extends Node {
  operator: { value: string };
  left: Node;
  right: Node;
}
interface Call extends Node {
  callee: Named;
  args: Argument[];
}
interface Argument extends Node {
  argument?: Node;
  value?: Node;
}
interface Filter extends Node {
  operand: Node;
  filter: Named | Call;
  body: Node[];
}
interface Loop extends Node {
  iterable: Node & { lhs: Node };
}

type Value = costs.Value;

/** Variables, within those of a parent. */
interface Scope {
  variables: Map<string, Value>;
  parent?: Scope;
  set(name: string, value: unknown): Value;
}

/** What is used of the library, whose own types do not resolve under `module: nodenext`. */
interface Engine {
  evaluate(node: Node | undefined, scope: Scope): Value;
}
const Library = Interpreter as unknown as new (scope: Scope) => Engine;
const NewScope = Environment as unknown as new () => Scope;

const MOST_SOURCE = 2 ** 18; // characters
const BLANK = /\s{1024}/; // the library takes time that grows as the square of white space
const MOST_MESSAGES = 2 ** 14;

// Units. A step takes some 50 ns, and makes an object of 40 bytes; the others make maps and
// closures. Measured on templates of models, a message takes 2,000 to 16,000.
const STEP = 32;
const CALL = 512;
const METHODS = 2048; // a value's own, when they are first asked for
const UNKNOWN = 1024;
const ROUND = 1024; // of a loop
const HOP = 8; // from a scope to its parent

const RESERVE = 2 ** 27;
const PER_MESSAGE = 2 ** 18;
const MOST_PER_MESSAGE = 2 ** 15;
const PER_CHARACTER = 32;

/**
 * A template that is rendered in bounded memory and time, for all of its conversations together.
 */
export class Template {
  private readonly program: Node;
  private readonly budget = new Budget(RESERVE);

  /** @throws Error for what is no template */
  constructor(source: string) {
    if (source.length > MOST_SOURCE)
      throw new Error(`it has ${source.length} characters, wanted at most ${MOST_SOURCE}`);
    if (BLANK.test(source)) throw new Error("it has 1024 characters of white space together");
    this.program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true })) as Node;
    mark(this.program);
  }

  /** @throws Error of the template's own, or for what takes too much */
  render(messages: readonly object[], variables: Record<string, unknown>): string {
    const { length } = messages;
    if (length > MOST_MESSAGES) throw new Error(`there are ${length} messages, wanted at most ${MOST_MESSAGES}`);
    const characters = costs.given(messages);
    this.budget.begin(
      (1 + length) * PER_MESSAGE + characters * PER_CHARACTER,
      length * MOST_PER_MESSAGE + characters * PER_CHARACTER,
    );
    const scope = new NewScope();
    for (const [name, value] of Object.entries({ ...globals(this.budget), ...variables, messages }))
      scope.set(name, value);
    return new Bounded(scope, this.budget).evaluate(this.program, scope).value as string;
  }
}

/** What the library gives every template; its own `range` makes any number of numbers. */
function globals(budget: Budget): Record<string, unknown> {
  const constants = { true: true, false: false, none: null, True: true, False: false, None: null };
  const raise_exception = (message: string) => {
    throw new Error(message);
  };
  const range = (...[first, second, step = 1]: [number, number?, number?]): number[] => {
    const [start, stop] = second === undefined ? [0, first] : [first, second];
    if (step === 0) throw new Error("range() step must not be zero");
    const numbers: number[] = [];
    for (let i = start; step > 0 ? i < stop : i > stop; i += step) {
      budget.spend(costs.ITEM);
      numbers.push(i);
    }
    return numbers;
  };
  const strftime_now = (format: string): string => {
    budget.spend(UNKNOWN + 64 * String(format).length);
    return formatted(new Date(), format);
  };
  return { ...constants, raise_exception, range, strftime_now };
}

const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

function formatted(date: Date, format: string): string {
  const two = (number: number) => String(number).padStart(2, "0");
  const month = MONTHS[date.getMonth()];
  const parts: Record<string, string> = {
    "%Y": String(date.getFullYear()),
    "%m": two(date.getMonth() + 1),
    "%d": two(date.getDate()),
    "%b": month.slice(0, 3),
    "%B": month,
    "%H": two(date.getHours()),
    "%M": two(date.getMinutes()),
    "%%": "%",
  };
  return format.replace(/%[YmdbBHM%]/g, (part) => parts[part]);
}

// they write text that was written within, or nothing
const SILENT = ["If", "For", "Set", "Macro", "Comment", "Break", "Continue"];

/**
 * Marks the nodes whose values a block writes out, and those that the library goes through whenever
 * it comes to them.
 */
function mark(tree: unknown): number {
  if (typeof tree !== "object" || tree === null) return 0;
  const node = tree as Node & Record<string, unknown>;
  let size = 1;
  for (const child of tree instanceof Map ? [...tree].flat() : Object.values(node)) size += mark(child);
  for (const key of ["body", "alternate", "defaultBlock"])
    if (Array.isArray(node[key]))
      for (const statement of node[key] as Node[]) if (!SILENT.includes(statement.type)) statement.written = true;
  if (node.type === "Macro" || node.type === "CallStatement") node.size = size;
  return size;
}

/** A value as a node, so that an operation takes values that are known and charged already. */
const given = (value: Value) => ({ type: "Given", value });

class Bounded extends Library {
  constructor(
    scope: Scope,
    private readonly budget: Budget,
  ) {
    super(scope);
  }

  override evaluate(node: Node | undefined, scope: Scope): Value {
    if (!node) return super.evaluate(node, scope);
    this.budget.spend(STEP);
    const value = this.charged(node, scope);
    if (node.written && value.type === "FunctionValue") throw new Error("it writes a function that it does not call");
    if (node.written) costs.text(this.budget, value);
    return value;
  }

  private charged(node: Node, scope: Scope): Value {
    switch (node.type) {
      case "Given":
        return (node as Node & { value: Value }).value;
      case "Identifier":
        return this.variable((node as Named).value, scope);
      case "MemberExpression":
        return this.member(node as Member, scope);
      case "BinaryExpression":
        return this.binary(node as Binary, scope);
      case "FilterExpression":
        return this.filter(node as Filter, this.evaluate((node as Filter).operand, scope), scope);
      case "FilterStatement":
        return this.filter(node as Filter, super.evaluate({ ...node, type: "Program" }, scope), scope);
      case "TestExpression": {
        const operand = this.evaluate((node as Filter).operand, scope);
        this.budget.spend(costs.shallow(operand));
        return super.evaluate({ ...node, operand: given(operand) } as Node, scope);
      }
      case "For":
        return this.loop(node as Loop, scope);
      case "CallExpression":
        return this.called(this.spread(node as Call, scope), scope);
      case "CallStatement":
        this.budget.spend(HOP * (node.size ?? 0));
        return this.called({ ...node, call: this.spread((node as Node & { call: Call }).call, scope) } as Node, scope);
      case "Macro":
        this.budget.spend(HOP * (node.size ?? 0));
        break;
      case "Break":
      case "Continue":
        this.budget.spend(UNKNOWN);
    }
    return super.evaluate(node, scope);
  }

  private variable(name: string, scope: Scope): Value {
    for (let within: Scope | undefined = scope; within; within = within.parent) {
      const found = within.variables.get(name);
      if (found !== undefined) return found;
      this.budget.spend(HOP);
    }
    return super.evaluate(undefined, scope);
  }

  private member(node: Member, scope: Scope): Value {
    const object = this.evaluate(node.object, scope);
    const { property, computed } = node;
    if (object.type === "ObjectValue" && (!computed || property.type === "StringLiteral")) {
      const found = (object.value as Map<string, Value>).get(property.value);
      if (found) return found;
    }
    if (property.type === "SliceExpression") {
      this.budget.spend(costs.sliced(object));
      return super.evaluate({ type: node.type, object: given(object), property, computed } as Node, scope);
    }
    this.budget.spend(METHODS);
    const key = computed ? given(this.evaluate(property, scope)) : property;
    const value = super.evaluate({ type: node.type, object: given(object), property: key, computed } as Node, scope);
    if (value.type !== "FunctionValue" || !costs.hasMethods(object)) return value;
    return this.method(object, computed ? String((key.value as Value).value) : property.value, value);
  }

  /** A method of a text or a mapping, charged when it is called, wherever it was kept. */
  private method(object: Value, name: string, { value, constructor }: Value): Value {
    type Work = (args: Value[], scope: Scope) => Value;
    const Method = constructor as unknown as new (work: Work) => Value;
    return new Method((args, scope) => {
      costs.method(this.budget, name, object, args);
      return (value as Work)(args, scope);
    });
  }

  private binary({ type, operator, left: first, right: second }: Binary, scope: Scope): Value {
    const left = this.evaluate(first, scope);
    const isLogic = operator.value === "and" || operator.value === "or";
    const right = isLogic ? undefined : this.evaluate(second, scope);
    if (right) costs.operation(this.budget, operator.value, left, right);
    return super.evaluate({ type, operator, left: given(left), right: right ? given(right) : second } as Node, scope);
  }

  private filter({ filter }: Filter, operand: Value, scope: Scope): Value {
    const isCall = "args" in filter;
    const values: Value[] = [];
    const call = isCall ? { ...filter, args: filter.args.map((arg) => this.argument(arg, scope, values)) } : filter;
    costs.filter(this.budget, isCall ? filter.callee.value : filter.value, operand, values);
    return super.evaluate({ type: "FilterExpression", operand: given(operand), filter: call } as Node, scope);
  }

  /** A call whose lists and mappings that are spread are known and charged. */
  private spread(call: Call, scope: Scope): Call {
    if (!call.args.some(({ argument }) => argument)) return call;
    return { ...call, args: call.args.map((arg) => (arg.argument ? this.argument(arg, scope, []) : arg)) };
  }

  /**
   * An argument by its value, which `values` is given; a literal stays, since some filters take no
   * other.
   */
  private argument(arg: Argument, scope: Scope, values: Value[]): Argument {
    const named = arg.type === "KeywordArgumentExpression";
    const value = this.evaluate(arg.argument ?? (named ? arg.value : arg), scope);
    values.push(value);
    if (arg.argument) this.budget.spend(costs.shallow(value));
    if (arg.argument) return { ...arg, argument: given(value) };
    if (named) return { ...arg, value: given(value) };
    return arg.type === "StringLiteral" ? arg : given(value);
  }

  private called(node: Node, scope: Scope): Value {
    this.budget.spend(CALL);
    const value = super.evaluate(node, scope);
    this.budget.spend(costs.shallow(value));
    return value;
  }

  private loop(node: Loop, scope: Scope): Value {
    const { iterable } = node;
    const selects = iterable.type === "SelectExpression";
    const value = this.evaluate(selects ? iterable.lhs : iterable, scope);
    this.budget.spend(ROUND * costs.rounds(value));
    return super.evaluate(
      { ...node, iterable: selects ? { ...iterable, lhs: given(value) } : given(value) } as Node,
      scope,
    );
  }
}
