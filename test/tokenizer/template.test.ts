import { Template as Library } from "@huggingface/jinja";
import { describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import { Template } from "../../lib/tokenizer/template.js";
import { seed } from "../random.js";

// The budget changes nothing of what a template writes: held to the library alone.

const messages = [
  { role: "system", content: "Be kind." },
  { role: "user", content: " Hello?\n", name: "A" },
  { role: "assistant", content: "<think>a b</think> Yes. ", parts: [{ type: "text", text: "x" }, 2, null] },
];
const variables = { bos_token: "<s>", eos_token: "</s>", add_generation_prompt: true };

/** What it writes, or that it refuses. */
function written(render: () => string): string {
  try {
    return `wrote ${render()}`;
  } catch (error) {
    return `refused: ${(error as Error).message}`;
  }
}
const both = (source: string) => [
  written(() => new Template(source).render(messages, variables)),
  written(() => new Library(source).render({ ...variables, messages })),
];

describe("a template within its budget", () => {
  const macro = "{% macro m(a, b='z') %}[{{ a }}{{ b }}{{ kwargs }}{{ varargs }}]{% endmacro %}";
  test.each([
    `${macro}{{ m(1, c=2) }}{{ m(*[1, 'q']) }}{{ m(**{'b': 3}) }}{% call m('k') %}body{% endcall %}`,
    "{% for k, v in {'b': 1, 'a': [2, {'x': none}]} | dictsort %}{{ k }}={{ v }};{% else %}none{% endfor %}",
    "{% for i in range(9) if i % 2 %}{% if i > 5 %}{% break %}{% endif %}{% if i == 3 %}{% continue %}{% endif %}{{ loop.index }}{{ loop.last }}{% endfor %}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | tojson(indent=2) }}",
    "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + loop.index %}{% endfor %}{{ ns.a }}{{ ns.b is defined }}{{ messages[::-1][0].role }}",
    "{% filter upper %}x{{ 1.5 }}{% endfilter %}{% set x %}a{{ bos_token }}{% endset %}{{ x ~ [1] ~ 2 }}{{ [1] == 'x' }}{{ 'b' if false else 'c' }}{{ y | default(-1) }}",
    "{% set f = 'a b'.split %}{{ f() }}{{ 'a-b-c'.replace('-', '+', 1) }}{{ 'x'.upper().lower().title() }}{{ messages[0].items() | list }}{{ messages[0].get('role') }}",
    "{{ messages[1].content.strip().startswith('H') }}{{ '</think>' in messages[2].content }}{{ messages[2].content.split('</think>')[-1].lstrip() }}",
    "{{ [3, 1, 2] | sort(reverse=true) }}{{ ['b', 'B', 'a'] | unique | list }}{{ 'ab\\nc' | indent(2, true) }}{{ raise_exception('no') }}",
    "{{ range(2, 9, 3) | list }}{{ range(3, 0, -1) | list }}{{ range(1, 2, 0) }}",
  ])("writes what the library writes: %s", (source) => {
    const [ours, theirs] = both(source);
    expect(ours).toBe(theirs);
  });

  const value = fc.letrec((tie) => ({
    leaf: fc.constantFrom(
      "'ab'",
      "''",
      "1",
      "2.5",
      "true",
      "none",
      "x",
      "messages",
      "messages[1]",
      "messages[2].parts",
      "[1, 'a']",
      "{'k': 'v'}",
      "messages[0].role",
      "loop",
    ),
    value: fc.oneof(
      { maxDepth: 3, depthSize: "small" },
      tie("leaf"),
      fc
        .tuple(
          tie("value"),
          fc.constantFrom("+", "~", "==", "!=", "in", "not in", "and", "or", "-", "*", "<"),
          tie("value"),
        )
        .map(([a, op, b]) => `(${a as string} ${op} ${b as string})`),
      fc
        .tuple(
          tie("value"),
          fc.constantFrom(
            "upper",
            "trim",
            "length",
            "list",
            "first",
            "join",
            "join('-')",
            "tojson",
            "tojson(indent=1)",
            "sort",
            "unique",
            "items",
            "indent(3)",
            "string",
            "default('d')",
            "replace('a', 'bb')",
            "map(attribute='role')",
            "selectattr('role')",
            "reverse",
            "int",
          ),
        )
        .map(([a, name]) => `(${a as string} | ${name})`),
      fc
        .tuple(
          tie("value"),
          fc.constantFrom(
            ".strip()",
            ".split('a')",
            ".split()",
            ".replace('a', 'xy')",
            ".items()",
            ".keys()",
            ".get('role')",
            "[0]",
            "[1:]",
            "[::-1]",
            "['role']",
            ".length",
            ".nothing",
            ".upper",
          ),
        )
        .map(([a, name]) => `${a as string}${name}`),
      fc
        .tuple(
          tie("value"),
          fc.constantFrom("is defined", "is string", "is not none", "is mapping", "is lower", "is iterable"),
        )
        .map(([a, name]) => `(${a as string} ${name})`),
    ),
  })).value as fc.Arbitrary<string>;
  const block = fc.oneof(
    value.map((one) => `{{ ${one} }}`),
    fc.tuple(value, value).map(([a, b]) => `{% for x in ${a} %}{{ ${b} }}{% endfor %}`),
    fc.tuple(value, value).map(([a, b]) => `{% set x = ${a} %}{% if ${b} %}{{ x }}{% endif %}`),
  );
  test("writes what the library writes, of any blocks", () => {
    let wrote = 0;
    fc.assert(
      fc.property(fc.array(block, { minLength: 1, maxLength: 3 }), (blocks) => {
        const [ours, theirs] = both(blocks.join("|"));
        fc.pre(!theirs.includes("=>") && !ours.includes("it writes a function")); // the library writes a method's source text
        expect(ours).toBe(theirs);
        wrote += Number(ours.startsWith("wrote"));
      }),
      { seed, numRuns: 2000 },
    );
    expect(wrote).toBeGreaterThan(100);
  });
});
