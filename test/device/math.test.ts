import { expect, test } from "@jest/globals";
import { math } from "../../lib/index.js";
import { Random, seed } from "../random.js";

// The law's own functions against the runtime's, which are good to an ulp.

const ulps = (got: number, wanted: number) =>
  Math.abs(got - wanted) / (Math.max(Math.abs(wanted), 2 ** -1022) * 2 ** -52);

function expectClose(
  name: string,
  f: (x: number) => number,
  g: (x: number) => number,
  draw: (random: Random) => number,
  most: number,
): void {
  const random = new Random(name);
  for (let i = 0; i < 20000; i++) {
    const x = draw(random);
    const distance = ulps(f(x), g(x));
    if (!(distance <= most))
      throw new Error(`${name}(${x}) is ${f(x)}, wanted ${g(x)}: ${distance} ulp (seed ${seed})`);
  }
}

test("exp, log and cos are within a few ulp", () => {
  expectClose("exp", math.exp, Math.exp, (random) => random.uniform(-80, 80), 4);
  expectClose("log", math.log, Math.log, (random) => Math.exp(random.uniform(-60, 60)), 4);
  const random = new Random("cos");
  for (let i = 0; i < 20000; i++) {
    const x = random.uniform(-50, 50);
    expect(Math.abs(math.cos(x) - Math.cos(x))).toBeLessThan(5e-16);
  }
});

test("powers are close, whole ones exact products", () => {
  const random = new Random("pow");
  for (let i = 0; i < 20000; i++) {
    const [x, y] = [Math.exp(random.uniform(-5, 12)), random.uniform(-3, 3)];
    expect(Math.abs(math.pow(x, y) / x ** y - 1)).toBeLessThan(1e-13);
  }
  expect(math.pow(0.5, 3)).toBe(0.125);
  expect(math.pow(3, 0)).toBe(1);
});

test("extremes", () => {
  expect([math.exp(-Infinity), math.exp(0), math.exp(Infinity), math.log(1), math.log(0), math.cos(0)]).toEqual([
    0,
    1,
    Infinity,
    0,
    -Infinity,
    1,
  ]);
  expect([math.exp(NaN), math.log(-1), math.cos(Infinity)]).toEqual([NaN, NaN, NaN]);
});
