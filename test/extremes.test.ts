import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { generate, ops, Tensor, type Device } from "../lib/index.js";
import { run } from "../lib/tensor/op.js";
import { holdToTemperatures } from "./hold.js";
import { everyCpu, lively, llama } from "./models.js";
import { Random } from "./random.js";

// Any finite logits at any temperature that is taken: a token that is there, a log-prob that is one.

const LARGEST = 3.4028234663852886e38; // of f32
const TEMPERATURES = [2 ** -127, 1e-38, 1e-30, 1e-6, 0.3, 1, 7, 1e6, 1e30, 2 ** 120];
const SCALES = [1, 1e4, 4e37, LARGEST];
const MODES = [{}, { topK: 3 }, { topP: 0.7 }, { minP: 0.1 }, { topK: 40, topP: 0.9, minP: 1 }];
const [ROWS, VOCABULARY] = [5, 700];

const devices: Device[] = [];
beforeAll(async () => {
  devices.push(...(await everyCpu()));
});
afterAll(() => Promise.all(devices.map((on) => on.close())));

function logitsOf(random: Random, scale: number): Float32Array {
  const logits = Float32Array.from({ length: ROWS * VOCABULARY }, () => random.uniform(-scale, scale));
  const special = [LARGEST, -LARGEST, 2 ** -149, -(2 ** -149), 2 ** -126, 0, -0, -Infinity];
  for (let i = 0; i < 20; i++)
    logits[random.below(logits.length)] = scale === 1 ? random.normal() : random.pick(special);
  return logits;
}

/** Differences are scaled, in f64. */
function logprob(row: Float32Array, y: number, temperature: number): number {
  const inverse = Math.fround(1 / temperature);
  const most = row.reduce((a, b) => Math.max(a, b));
  const rest = row.reduce((sum, x, j) => (j === y ? sum : sum + Math.exp((x - most) * inverse)), 0);
  const own = (row[y] - most) * inverse;
  return own === 0 ? -Math.log1p(rest) : own - Math.log(rest + Math.exp(own));
}

test("no temperature that is taken, and no finite logit, leads to a token that is not there or a log-prob that is none", async () => {
  const random = new Random("extremes");
  for (const temperature of TEMPERATURES)
    for (const scale of SCALES) {
      const logits = logitsOf(random, scale);
      const counter = Int32Array.from({ length: 4 * ROWS }, () => random.below(1000));
      for (const mode of MODES) {
        const args = { seed: 7, stream: 1, temperature, topK: 0, topP: 1, minP: 0, ...mode };
        let wanted: unknown;
        for (const on of devices) {
          const at = Tensor.from(logits, [ROWS, VOCABULARY], on);
          const { token, logp, truncatedLogp } = run("sample", {
            logits: at,
            counter: Tensor.from(counter, [ROWS, 4], on),
            ...args,
          });
          const tokens = (await token.read()) as Int32Array;
          const again = ops.logprob(at, tokens, { temperature });
          const found = [
            tokens,
            await logp.read(),
            await truncatedLogp.read(),
            await again.logp.read(),
            await again.entropy.read(),
          ];
          expect(Array.from(found[3])).toEqual(Array.from(found[1]));
          for (const tensor of [at, token, logp, truncatedLogp, ...Object.values(again)]) tensor.dispose();
          wanted ??= found;
          expect(found).toEqual(wanted);
          for (let i = 0; i < ROWS; i++) {
            const row = logits.subarray(i * VOCABULARY, (i + 1) * VOCABULARY);
            expect(tokens[i]).toBeGreaterThanOrEqual(0);
            expect(tokens[i]).toBeLessThan(VOCABULARY);
            const exact = logprob(row, tokens[i], temperature);
            expect(Math.abs(found[1][i] - exact)).toBeLessThanOrEqual(1e-6 * Math.abs(exact) + 1e-37);
            expect(found[1][i]).toBeLessThanOrEqual(0);
            expect(found[2][i]).toBeLessThanOrEqual(0);
            expect(found[4][i]).toBeGreaterThanOrEqual(0);
          }
        }
      }
    }
});

test("log-probs hold at any temperature", async () => {
  for (const on of devices) await holdToTemperatures(on);
});

test("from the hidden state too, log-probs at extreme temperatures are those of the logits", async () => {
  const random = new Random("extreme heads");
  const [width, rows] = [16, Int32Array.of(0, 1, 2, 3, 4)];
  for (const on of devices)
    for (const temperature of TEMPERATURES) {
      const h = Tensor.from(
        Float32Array.from({ length: ROWS * width }, () => 1e18 * random.normal()),
        [ROWS, width],
        on,
      );
      const weight = Tensor.from(
        Float32Array.from({ length: VOCABULARY * width }, () => 1e18 * random.normal()),
        [VOCABULARY, width],
        on,
      );
      const y = Int32Array.from(rows, () => random.below(VOCABULARY));
      const logits = ops.linear(h, weight);
      const [fused, plain] = [
        ops.linearLogprob(h, weight, rows, y, { temperature }),
        ops.logprob(logits, y, { temperature }),
      ];
      expect(await fused.logp.read()).toEqual(await plain.logp.read());
      expect(await fused.entropy.read()).toEqual(await plain.entropy.read());
      for (const p of await plain.logp.read()) expect(p).toBeLessThanOrEqual(0);
      for (const tensor of [h, weight, logits, ...Object.values(fused), ...Object.values(plain)]) tensor.dispose();
    }
});

test("the full KL is finite and never negative at extreme temperatures, and 0 between equals", async () => {
  const random = new Random("extreme divergences");
  for (const on of devices)
    for (const temperature of TEMPERATURES) {
      const [a, b] = [0, 1].map(() =>
        Tensor.from(
          Float32Array.from({ length: ROWS * 530 }, () => 1e30 * random.normal()),
          [ROWS, 530],
          on,
        ),
      );
      const [apart, same] = [b, a].map((refLogits) => run("fullKl", { logits: a, refLogits, temperature }).kl);
      for (const kl of await apart.read()) expect(kl).toBeGreaterThanOrEqual(0);
      for (const kl of await same.read()) expect(kl).toBe(0);
      for (const tensor of [a, b, apart, same]) tensor.dispose();
    }
});

test("a temperature whose inverse is no f32 is refused by its name", () => {
  const on = devices[0];
  const logits = Tensor.from(new Float32Array(6), [2, 3], on);
  for (const temperature of [0, -1, 5e-324, 1e-39, 1e37, Infinity, NaN])
    expect(() => ops.logprob(logits, Int32Array.of(0, 1), { temperature })).toThrow(/^logprob: temperature is /);
});

test("a model of any finite weights samples tokens that are there, or is refused by a code", async () => {
  const random = new Random("extreme weights");
  const on = devices[0];
  for (let round = 0; round < 40; round++) {
    const model = await lively(llama, on);
    const { name, value } = random.pick([...model.parameters.values()]);
    const factor = random.pick([LARGEST, 4e37, 1e20, 2 ** -149, -1e30]);
    value.write(Float32Array.from(await value.read(), (x) => Math.max(-LARGEST, Math.min(LARGEST, x * factor))));
    const options = {
      maxTokens: 4,
      seed: round,
      temperature: random.pick([0, ...TEMPERATURES]),
      ...random.pick(MODES),
    };
    try {
      for (const { completion } of await generate(model, [{ prompt: [1, 2, 3], index: 0, sample: 0 }], options))
        for (const id of completion) expect(id >= 0 && id < llama.vocabulary).toBe(true);
    } catch (error) {
      const { code, message } = error as Error & { code?: string };
      if (code !== "ARGUMENT")
        throw new Error(`${name} times ${factor}, ${JSON.stringify(options)}: ${message}`, { cause: error });
      expect(message).toMatch(/^sample: logits hold NaN or infinity/);
    }
    model.dispose();
  }
});
