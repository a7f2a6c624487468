import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { configText, readConfig } from "../lib/cli/config/config.js";
import { Run } from "../lib/cli/run/run.js";
import type { Config } from "../lib/cli/config/schema.js";
import { rangeError } from "../lib/device/errors.js";
import {
  AdamW,
  device,
  generate,
  itemBatches,
  klController,
  loadModel,
  logps,
  ops,
  packEpisodes,
  packWhole,
  Parameter,
  ppo,
  readComparisons,
  readCompletions,
  readPrompts,
  scope,
  sft,
  sftLearner,
  Tape,
  textBatches,
  Tensor,
  Transformer,
  windows,
  type Device,
  type PpoOptions,
  type Request,
  type RewardFunction,
} from "../lib/index.js";
import { failure } from "./hold.js";
import { episodes, lively, llama, ppoConfig } from "./models.js";
import { run } from "../lib/tensor/op.js";
import { Random } from "./random.js";

let on: Device;
let folder: string;
beforeAll(async () => {
  on = await device("cpu", { threads: 2 });
  folder = await mkdtemp(join(tmpdir(), "rlhf-errors-"));
});
afterAll(async () => {
  await on.close();
  await rm(folder, { recursive: true });
});

async function expectError(
  work: () => unknown,
  kind: typeof TypeError | typeof RangeError,
  code: string,
  ...says: string[]
): Promise<void> {
  const error = await failure(work);
  expect(error).toBeInstanceOf(kind);
  expect(error.code).toBe(code);
  for (const one of says) expect(error.message).toContain(one);
}
const tensor = (shape: number[], fill = 0.1) =>
  Tensor.from(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(fill), shape, on);
const offsets = (...values: number[]) => Int32Array.from(values);

// Numbers that kernels turn into f32 are finite there, and a temperature has an inverse.
const LARGEST = (2 - 2 ** -23) * 2 ** 127;
const FINITE = `[${-LARGEST}, ${LARGEST}]`;
const POSITIVE = `[${2 ** -126}, ${LARGEST}]`;
const TEMPERATURES = `[${2 ** -127}, ${2 ** 120}]`;

describe("a call of an op", () => {
  test("names a wrong shape", async () => {
    await expectError(
      () => ops.linear(tensor([2, 3]), tensor([4, 5])),
      RangeError,
      "SHAPE",
      "linear",
      "weight",
      "[4,5]",
      "I = 3",
    );
    await expectError(() => ops.gae(tensor([4]), tensor([5]), offsets(0, 4)), RangeError, "SHAPE", "gae", "values");
    await expectError(
      () => ops.attention(tensor([4, 2]), tensor([4, 2, 8]), tensor([4, 2, 8]), offsets(0, 4)),
      RangeError,
      "SHAPE",
      "attention",
      "q",
    );
  });
  test("names a wrong dtype", () =>
    expectError(
      () => ops.gae(tensor([4]), Tensor.from(new Int32Array(4), [4], on), offsets(0, 4)),
      TypeError,
      "DTYPE",
      "gae",
      "values",
      "int32",
      "f32",
    ));
  test("names a token id out of range", async () => {
    await expectError(
      () => ops.embedding(Int32Array.of(0, 9), tensor([9, 2])),
      RangeError,
      "ID",
      "embedding",
      "ids[1]",
      "9",
      "0 to 8",
    );
    await expectError(
      () => ops.logprob(tensor([2, 5]), Int32Array.of(0, -1)),
      RangeError,
      "ID",
      "logprob",
      "y[1]",
      "-1",
    );
    const late = Tensor.from(Int32Array.of(0, 77), [2], on); // on the device: found by the kernel, told by the next read
    const { logp } = ops.logprob(tensor([2, 5]), late);
    await expectError(() => logp.read(), RangeError, "ID", "logprob");
  });
  test("names offsets that are not monotone from 0 to the end", async () => {
    await expectError(
      () => ops.gae(tensor([4]), tensor([4]), offsets(0, 3, 2, 4)),
      RangeError,
      "OFFSETS",
      "gae",
      "cuSeqlens[2]",
    );
    await expectError(() => ops.gae(tensor([4]), tensor([4]), offsets(1, 4)), RangeError, "OFFSETS", "cuSeqlens[0]");
    await expectError(() => ops.gae(tensor([4]), tensor([4]), offsets(0, 3)), RangeError, "OFFSETS", "wanted 4");
  });
  test("takes numbers for what they are, or refuses them: none is rounded, cut or read as bytes", async () => {
    const table = tensor([2, 2]);
    await expectError(() => ops.embedding([1.9], table), RangeError, "ID", "embedding", "ids[0]", "1.9", "whole");
    await expectError(() => ops.embedding([2 ** 32], table), RangeError, "ID", "ids[0]", "4294967296");
    await expectError(
      () => ops.embedding([undefined as unknown as number], table),
      TypeError,
      "ARGUMENT",
      "ids[0]",
      "undefined",
    );
    await expectError(() => ops.gae([1, 2, 3], [0, 0, 0], [0, 1.9, 3]), RangeError, "OFFSETS", "cuSeqlens[1]", "1.9");
    await expectError(() => ops.gae([1, 2], [0, 0], [0, 2], { mask: [0.5, 1] }), RangeError, "RANGE", "mask[0]", "0.5");
    await expectError(() => ops.scale([1, "2" as unknown as number], 1), TypeError, "ARGUMENT", "scale", 'x[1] is "2"');
    await expectError(
      () => ops.embedding(new Uint8Array(2) as unknown as Int32Array, table),
      TypeError,
      "DTYPE",
      "ids",
      "Uint8Array",
      "int32",
    );
    await expectError(() => ops.scale(new BigInt64Array(2), 1), TypeError, "DTYPE", "x", "BigInt64Array", "f32");
    await expectError(
      () => ops.scale(new DataView(new ArrayBuffer(8)) as unknown as Float32Array, 1),
      TypeError,
      "DTYPE",
      "DataView",
    );
    const wide = ops.embedding(BigInt64Array.of(1n, 0n), table); // as other libraries have ids
    expect(wide.shape).toEqual([2, 2]);
    await expectError(() => ops.embedding(BigInt64Array.of(2n ** 32n), table), RangeError, "ID", "ids[0]");
    await expectError(() => ops.embedding(BigInt64Array.of(2n), table), RangeError, "ID", "ids[0]", "0 to 1");
  });
  test("takes null for an argument that may be missing, and names one that may not", async () => {
    const nothing = null as unknown as undefined;
    const [x, weight] = [tensor([1, 2]), tensor([3, 2])];
    expect(await ops.linear(x, weight, nothing).read()).toEqual(await ops.linear(x, weight).read());
    expect(ops.gae([1, 2], [0, 0], [0, 2], { mask: nothing }).advantages.shape).toEqual([2]);
    await expectError(
      () => ops.linear(x, nothing as unknown as Tensor),
      TypeError,
      "ARGUMENT",
      "linear",
      "weight",
      "missing",
    );
  });
  test("that wants more workspace than the system has says how much, and leaves the device as it was", async () => {
    const head = tensor([3 * 2 ** 51, 0]); // takes no memory itself, being without width; 48 bits of addresses hold no such workspace
    const { logp } = ops.linearLogprob(tensor([1, 0]), head, [0], [5]);
    await expectError(
      () => logp.read(),
      RangeError,
      "MEMORY",
      "linearLogprob: out of memory: ",
      " bytes of workspace wanted",
    );
    expect(Array.from(await ops.linearLogprob(tensor([1, 0]), tensor([4, 0]), [0], [3]).logp.read())).toEqual([
      expect.closeTo(-Math.log(4), 6),
    ]);
  });
  test("names a tensor that was disposed", async () => {
    const x = tensor([3]);
    x.dispose();
    await expectError(() => ops.add(x, tensor([3])), TypeError, "DISPOSED", "[3]");
    await expectError(() => x.read(), TypeError, "DISPOSED");
  });
  test("names a tensor of another device", async () => {
    await using other = await device("cpu", { threads: 1 });
    await expectError(
      () => ops.add(tensor([3]), Tensor.from(new Float32Array(3), [3], other)),
      TypeError,
      "DEVICE",
      "add",
      "b",
    );
  });
  test("of a loss keeps its statistics where its tensors are, whatever device came first", async () => {
    await using other = await device("cpu", { threads: 1 });
    const there = Tensor.from(Float32Array.of(1, 2), [2], other);
    const { loss, stats } = ops.valueLoss(there, new Float32Array(2), { cuSeqlens: offsets(0, 2), denominator: 2 });
    expect((await loss.read())[0]).toBe(1.25);
    expect((await stats.read())[6]).toBe(2);
    const policy = ops.policyLoss(there, there, there, { cuSeqlens: offsets(0, 2), denominator: 2 });
    expect((await policy.stats.read())[9]).toBe(2);
  });
  test("names a choice that there is not", () =>
    expectError(
      () => ops.gelu(tensor([3]), "sigmoid" as "tanh"),
      TypeError,
      "CHOICE",
      "gelu",
      "form",
      "sigmoid",
      "tanh, erf",
    ));
  test("names a number that is none", () =>
    expectError(() => ops.scale(tensor([3]), NaN), TypeError, "ARGUMENT", "scale", "factor", "NaN"));
  test("names a number that is out of its range, on every device", async () => {
    const row = tensor([1, 3]);
    const two = tensor([2]);
    const loss = { cuSeqlens: offsets(0, 2), denominator: 2 };
    const policy = (more: object) => () => ops.policyLoss(two, two, two, { ...loss, ...more });
    const pairs = (more: object) => () =>
      ops.preferenceLoss(two, offsets(0), offsets(1), { form: "ipo", refScores: two, denominator: 1, ...more });
    const refused: [() => unknown, string, number, string][] = [
      [() => ops.logprob(row, offsets(1), { temperature: 0 }), "temperature", 0, TEMPERATURES],
      [() => ops.linearLogprob(row, row, offsets(0), offsets(0), { temperature: -1 }), "temperature", -1, TEMPERATURES],
      [
        () =>
          ops.linearPolicyLoss(row, row, offsets(0), offsets(0), tensor([1]), tensor([1]), {
            cuSeqlens: offsets(0, 1),
            denominator: 1,
            temperature: 0,
          }),
        "temperature",
        0,
        TEMPERATURES,
      ],
      [policy({ denominator: 0 }), "denominator", 0, POSITIVE],
      [policy({ denominator: -2 }), "denominator", -2, POSITIVE],
      [policy({ clipRatioC: 0.5 }), "clipRatioC", 0.5, "[1, Infinity]"],
      [policy({ clipRatioLow: -0.1 }), "clipRatioLow", -0.1, "[0, Infinity]"],
      [policy({ clipRatioHigh: -0.1 }), "clipRatioHigh", -0.1, "[0, Infinity]"],
      [policy({ logRatioClamp: -1 }), "logRatioClamp", -1, "[0, Infinity]"],
      [policy({ klCoef: Infinity }), "klCoef", Infinity, FINITE],
      [() => ops.valueLoss(two, two, { ...loss, clipRange: -1 }), "clipRange", -1, "[0, Infinity]"],
      [pairs({ beta: 0 }), "beta", 0, POSITIVE],
      [pairs({ form: "dpo", labelSmoothing: 0.7 }), "labelSmoothing", 0.7, "[0, 0.5]"],
      [() => ops.gae(two, two, offsets(0, 2), { gamma: 2 }), "gamma", 2, "[0, 1]"],
      [() => ops.rmsNorm(row, tensor([3]), { eps: -1 }), "eps", -1, `[0, ${LARGEST}]`],
      [
        () =>
          ops.attention(tensor([1, 1, 8]), tensor([1, 1, 8]), tensor([1, 1, 8]), offsets(0, 1), { scale: -Infinity }),
        "scale",
        -Infinity,
        FINITE,
      ],
    ];
    for (const [work, name, given, wanted] of refused)
      await expectError(work, RangeError, "RANGE", `${name} is ${given}`, `wanted a number in ${wanted}`);
    const adamw = {
      weight: two,
      grad: two,
      m: two,
      v: two,
      normSquared: Float64Array.of(1),
      lr: 0.1,
      beta1: 0.9,
      beta2: 0.9,
      eps: 1e-8,
      weightDecay: 0,
      maxNorm: 1,
      step: 1,
    };
    for (const [name, value] of Object.entries({ beta1: 1, beta2: -0.1, eps: -1, maxNorm: -1, step: 0 }))
      await expectError(
        () => run("adamw", { ...adamw, [name]: value }),
        RangeError,
        "RANGE",
        "adamw",
        `${name} is ${value}`,
      );
  });
  test("names an option that there is not", async () => {
    const [two, four] = [tensor([2]), tensor([1, 4])];
    const clip = { clipRatio: 0.1 };
    const loss = { cuSeqlens: offsets(0, 2), denominator: 2, ...clip };
    const typo = { temperatur: 0.7 };
    const calls: Record<string, () => unknown> = {
      policyLoss: () => ops.policyLoss(two, two, two, loss),
      linearPolicyLoss: () =>
        ops.linearPolicyLoss(four, four, offsets(0), offsets(0), tensor([1]), tensor([1]), {
          ...loss,
          cuSeqlens: offsets(0, 1),
        }),
      linearNll: () => ops.linearNll(four, four, offsets(0), offsets(0), { ...loss, cuSeqlens: offsets(0, 1) }),
      valueLoss: () => ops.valueLoss(two, two, loss),
      preferenceLoss: () =>
        ops.preferenceLoss(two, offsets(0), offsets(1), { form: "bradley-terry", denominator: 1, ...clip }),
      logprob: () => ops.logprob(four, offsets(0), typo as object),
      linearLogprob: () => ops.linearLogprob(four, four, offsets(0), offsets(0), typo as object),
      gae: () => ops.gae(two, two, offsets(0, 2), typo as object),
      gaePadded: () => ops.gaePadded(four, four, tensor([1, 4]), typo as object),
      tokenRewards: () => ops.tokenRewards(two, two, tensor([1]), offsets(0, 2), { klCoef: 0, ...typo }),
      whiten: () => ops.whiten(two, offsets(0, 2), typo as object),
      sequenceSum: () => ops.sequenceSum(two, offsets(0, 2), typo as object),
      attention: () =>
        ops.attention(tensor([1, 1, 8]), tensor([1, 1, 8]), tensor([1, 1, 8]), offsets(0, 1), typo as object),
      layerNorm: () => ops.layerNorm(four, tensor([4]), undefined, typo as object),
      rmsNorm: () => ops.rmsNorm(four, tensor([4]), typo as object),
    };
    for (const [name, work] of Object.entries(calls)) {
      const error = await failure(work);
      expect([name, error.code, /no argument "(clipRatio|temperatur)"/.test(error.message)]).toEqual([
        name,
        "ARGUMENT",
        true,
      ]);
    }
  });
  test("names arguments as JavaScript does, where a kernel refuses it too", async () => {
    const two = tensor([2]);
    const { loss } = ops.policyLoss(two, two, two, { cuSeqlens: offsets(0, 2), denominator: 2, klCoef: 0.1 });
    await expectError(() => loss.read(), TypeError, "ARGUMENT", "policyLoss: klCoef is not 0, and refLogp is missing");
  });
  test("names a sequence that has no token for its score", () =>
    expectError(
      () => ops.tokenRewards(tensor([1]), tensor([1]), tensor([2]), offsets(0, 1, 1), { klCoef: 0.1 }),
      RangeError,
      "EMPTY",
      "tokenRewards",
      "sequence 1",
    ));
  test("refuses a device that this build has not", async () => {
    await expectError(() => device("tpu" as "cpu"), RangeError, "DEVICE", "tpu", "webgpu");
    await expectError(() => device("cuda", { ordinal: 1000 }), RangeError, "DEVICE", "cuda: ");
    await expectError(() => device("cuda", { ordinal: -1 }), RangeError, "DEVICE", "ordinal", "-1");
    await expectError(() => device("cpu", { isa: "sse" }), RangeError, "ISA", "sse", "scalar");
    await expectError(() => device("cpu", { threads: -1 }), RangeError, "THREADS", "-1");
  });
  test("of a preference loss refuses an option that its form has no use for", async () => {
    const loss = (options: Partial<ops.PreferenceLossOptions>) =>
      ops.preferenceLoss(tensor([2]), [0], [1], { form: "bradley-terry", denominator: 1, ...options }).loss.read();
    await expectError(() => loss({ refScores: [0, 0] }), TypeError, "ARGUMENT", "refScores", "bradley-terry");
    await expectError(() => loss({ beta: 0.1 }), TypeError, "ARGUMENT", "beta", "bradley-terry");
    for (const [name, value] of Object.entries({ margin: [1], label: [0.5], labelSmoothing: 0.1 }))
      await expectError(
        () => loss({ form: "ipo", refScores: [0, 0], [name]: value }),
        TypeError,
        "ARGUMENT",
        name,
        "ipo",
      );
    for (const labelSmoothing of [-0.1, 0.6])
      await expectError(() => loss({ labelSmoothing }), RangeError, "RANGE", "labelSmoothing", `${labelSmoothing}`);
    await expectError(() => loss({ label: [3] }), RangeError, "RANGE", "label[0]", "3");
    const form = { form: "dpo" as const, refScores: [0, 1] };
    expect(await loss({ ...form, labelSmoothing: undefined, margin: undefined })).toEqual(
      await loss({ ...form, beta: 0.1, labelSmoothing: 0 }),
    );
  });
  test("whose gradient came with its loss refuses to be continued", async () => {
    const tape = new Tape();
    const values = new Parameter("values", tensor([3]));
    await expectError(
      () =>
        tape.backward(
          tape.record(() =>
            ops.scale(ops.valueLoss(values, new Float32Array(3), { cuSeqlens: offsets(0, 3), denominator: 3 }).loss, 2),
          ),
        ),
      TypeError,
      "TAPE",
      "valueLoss",
    );
  });
});

describe("a tensor", () => {
  test("is made of the arrays that it names, and of no others", async () => {
    for (const data of [BigInt64Array.of(1n, 2n), new Uint8Array(8), new Float32Array(2).buffer, 3, null])
      await expectError(
        () => Tensor.from(data as unknown as Float32Array, [2], on),
        TypeError,
        "DTYPE",
        "Float32Array, Float64Array, Int32Array, Uint16Array",
      );
    await expectError(
      () => Tensor.from(new Uint8Array(2) as unknown as Float32Array, [2], on, "f16"),
      TypeError,
      "DTYPE",
      "Uint8Array",
    );
    await expectError(
      () => tensor([2]).write(BigInt64Array.of(1n, 2n) as unknown as Float32Array),
      TypeError,
      "DTYPE",
      "BigInt64Array",
    );
    await expectError(
      () => Tensor.from([[1, 2]] as unknown as number[], undefined, on),
      TypeError,
      "ARGUMENT",
      "data[0]",
      "[1,2]",
    );
  });
  test("has sizes that are whole and not negative, four at most", async () => {
    for (const shape of [[-3], [2.5], [NaN], [-1, -2], [1, 1, 1, 1, 2]]) {
      await expectError(() => Tensor.empty(shape, "f32", on), RangeError, "SHAPE", `[${shape}]`);
      await expectError(() => Tensor.from([1, 2], shape, on), RangeError, "SHAPE", `[${shape}]`);
      await expectError(() => tensor([2]).reshape(shape), RangeError, "SHAPE", `[${shape}]`);
    }
    await expectError(() => tensor([3]).rows(0.5, 2), RangeError, "RANGE", "0.5");
  });
  test("that is packed is no other tensor", async () => {
    const packed = ops.pack(tensor([3, 2]));
    await expectError(() => packed.rows(0, 1), TypeError, "LAYOUT");
    await expectError(() => packed.reshape([6]), TypeError, "LAYOUT");
    await expectError(() => packed.write(new Float32Array(6)), TypeError, "LAYOUT");
    await expectError(() => tensor([3]).withLayout("panels", [3, 1]), RangeError, "SHAPE", "32", "3");
  });
});

describe("a model", () => {
  test("wants something before the first token, and a completion", async () => {
    await expectError(
      () => packEpisodes([{ prompt: [], completion: [1] }]),
      RangeError,
      "EMPTY",
      "episode 0",
      "prompt",
    );
    await expectError(
      () =>
        packEpisodes([
          { prompt: [1], completion: [1] },
          { prompt: [1], completion: [] },
        ]),
      RangeError,
      "EMPTY",
      "episode 1",
      "completion",
    );
    await expectError(
      () => packWhole([{ prompt: [1], completion: [] }]),
      RangeError,
      "EMPTY",
      "episode 0",
      "completion",
    );
    const model = await lively(llama, on);
    const request = (prompt: number[]) => [{ prompt, index: 0, sample: 0 }];
    const options = { maxTokens: 4, seed: 0 };
    await expectError(() => generate(model, request([]), options), RangeError, "EMPTY", "prompt 0");
    await expectError(
      () => generate(model, request([1, 97]), options),
      RangeError,
      "ID",
      "prompt 0",
      "token 1",
      "97",
      "0 to 96",
    );
    await expectError(
      () => generate(model, request(Array<number>(93).fill(1)), options),
      RangeError,
      "CONTEXT",
      "93",
      "96",
    );
    await expectError(() => generate(model, request([1.5]), options), RangeError, "ID", "prompt 0", "1.5");
    for (const [name, value] of Object.entries({
      maxTokens: 0,
      slots: 0,
      temperature: -1,
      topK: -3,
      topP: 0,
      minP: 2,
      seed: -1,
      update: 0.5,
    })) {
      await expectError(
        () => generate(model, request([1]), { ...options, [name]: value }),
        RangeError,
        "RANGE",
        name,
        `${value}`,
      );
      await expectError(
        () => generate(model, request([1]), { ...options, [name]: NaN }),
        RangeError,
        "RANGE",
        name,
        "NaN",
      );
    }
    for (const slots of [1.5, Infinity])
      await expectError(() => generate(model, request([1]), { ...options, slots }), RangeError, "RANGE", "slots");
    const unnumbered = [{ prompt: [1], index: 0, sample: 0 }, { prompt: [1] } as unknown as Request];
    await expectError(
      () => generate(model, unnumbered, options),
      RangeError,
      "RANGE",
      "index of request 1",
      "undefined",
    );
    await expectError(() => logps(model, [{ prompt: [1], completion: [200] }]), RangeError, "ID", "200");
    model.dispose();
  });
  test("answers more requests than a call has arguments", async () => {
    const model = Transformer.random({ ...llama, layers: 1 }, "logits", on, 0);
    const requests = Array.from({ length: 130_000 }, (_, index) => ({ prompt: [1], index, sample: 0 }));
    await expectError(
      () => generate(model, [...requests, { prompt: [], index: 0, sample: 0 }], { maxTokens: 1, seed: 0 }),
      RangeError,
      "EMPTY",
      "130000",
    );
    const completions = await generate(model, requests, { maxTokens: 1, seed: 0, slots: 512 });
    const { logp } = await logps(model, completions, { microBatch: Infinity });
    expect([completions.length, logp.length]).toEqual([130_000, 130_000]);
    model.dispose();
  });
  test("names what is missing in its folder", async () => {
    await expectError(() => loadModel(folder, on), TypeError, "MODEL", folder, "config.json");
    await writeFile(join(folder, "config.json"), "{ no JSON");
    await expectError(() => loadModel(folder, on), TypeError, "MODEL", "config.json", "JSON");
  });
  test("whose loss is NaN stops the training at that step, with its weights untouched", async () => {
    const model = await lively(llama, on);
    const [name, { value }] = [...model.parameters][0];
    const before = (await value.read()) as Float32Array;
    value.write(before.map((x, i) => (i === 40 ? NaN : x)));
    const random = new Random("nan");
    const config = { learningRate: 1e-3, schedule: "constant" as const, warmup: 0, steps: 9 };
    const learner = sftLearner(model, config);
    const optimizer = learner.optimizers.model;
    learner.round = optimizer.steps = 4;
    const last = [...model.parameters.values()].at(-1)!.value;
    const kept = Buffer.from((await last.read()).buffer);
    await expectError(
      async () => {
        for await (const _ of sft(model, () => episodes(random, 8), config, learner));
      },
      RangeError,
      "NAN",
      "step 5",
      "gradient norm",
    );
    expect(Buffer.from((await last.read()).buffer).equals(kept)).toBe(true);
    expect(optimizer.steps).toBe(4);
    expect(name).toBe("embedding");
    model.dispose();
  });
  test("whose gradient comes of an op that failed ends with that op's error; a failure elsewhere is none of its own", async () => {
    const weight = new Parameter("w", tensor([2, 3]));
    const optimizer = new AdamW([weight]);
    const failed = () => ops.embedding(Tensor.from(Int32Array.of(1, 9), [2], on), tensor([4, 3]));
    run("accumulate", { x: tensor([2, 3]), y: weight.accumulator({ term: 0, count: 0 }) });
    const elsewhere = failed();
    expect(await optimizer.step(1e-3)).toBeCloseTo(Math.sqrt(6) * 0.1);
    await weight.value.read();
    await expectError(() => elsewhere.read(), RangeError, "ID", "embedding", "ids");
    run("accumulate", { x: failed(), y: weight.accumulator({ term: 0, count: 0 }) });
    await expectError(() => optimizer.step(1e-3), RangeError, "ID", "embedding", "ids");
    await expectError(() => weight.value.read(), RangeError, "ID", "embedding", "ids");
    optimizer.dispose();
    weight.dispose();
  });
  test("whose score is NaN stops PPO at that update", async () => {
    const [policy, reference, reward, critic] = [
      await lively(llama, on),
      await lively(llama, on),
      await lively(llama, on, "score"),
      await lively(llama, on, "score"),
    ];
    const head = reward.parameter("score").value;
    head.write(new Float32Array(head.size).fill(NaN));
    await expectError(
      async () => {
        for await (const _ of ppo(
          { policy, reference, reward, critic },
          () => [{ prompt: [1, 2], index: 0, sample: 0 }],
          { ...ppoConfig, minibatches: 1 },
        ));
      },
      RangeError,
      "NAN",
      "step 1",
      "score of completion 0",
    );
  });
});

describe("a tape", () => {
  test("refuses a loss that it did not record, or has run back from, or is given twice", async () => {
    const weight = new Parameter("w", tensor([1]));
    const tape = new Tape();
    await expectError(() => tape.backward(ops.sum(weight)), TypeError, "TAPE", "loss 0");
    const loss = tape.record(() => ops.sum(weight));
    await expectError(() => tape.backward(loss, loss), TypeError, "TAPE", "loss 1", "before");
    tape.backward(loss);
    await expectError(() => tape.backward(loss), TypeError, "TAPE", "loss 0");
    expect(Array.from(await weight.gradient()!.read())).toEqual([1]);
    weight.trainable = false;
    await expectError(
      () => tape.backward(tape.record(() => ops.sum(weight))),
      TypeError,
      "TAPE",
      "no weight that learns",
    );
    weight.dispose();
  });
  test("frees the gradient of a computed weight that is used twice", () => {
    const weight = new Parameter("w", tensor([3, 2]));
    const tape = new Tape();
    using x = tensor([4, 2]);
    const { current } = on.memory();
    const loss = tape.record(() => {
      const square = ops.mul(weight, weight);
      return ops.sum(ops.add(ops.linear(x, square), ops.linear(x, square)));
    });
    tape.backward(loss);
    loss.dispose();
    weight.zeroGrad();
    expect(on.memory().current).toBe(current);
    weight.dispose();
  });
  test("a scope and a recording want a function that is done when it returns", async () => {
    const later = async () => ops.scale(tensor([2]), 2);
    const { current } = on.memory();
    await expectError(() => scope(later), TypeError, "ASYNC", "scope", "promise");
    await expectError(() => new Tape().record(later), TypeError, "ASYNC", "record");
    await expectError(() => on.record(async () => 1), TypeError, "ASYNC", "record");
    await expectError(
      () =>
        scope(() => {
          tensor([9]);
          throw rangeError("TEST", "whatever");
        }),
      RangeError,
      "TEST",
    );
    expect(on.memory().current).toBe(current);
  });
});

describe("PPO", () => {
  const request = () => [{ prompt: [1, 2], index: 0, sample: 0 }];
  const first = async (config: PpoOptions, prompts: () => Request[] = request, reward?: RewardFunction) => {
    const [policy, reference, scorer, critic] = [
      await lively(llama, on),
      await lively(llama, on),
      await lively(llama, on, "score"),
      await lively(llama, on, "score"),
    ];
    try {
      await ppo({ policy, reference, reward: reward ?? scorer, critic }, prompts, {
        ...ppoConfig,
        minibatches: 1,
        ...config,
      }).next();
    } finally {
      for (const model of [policy, reference, scorer, critic]) model.dispose();
    }
  };
  test("names what its options want", async () => {
    await expectError(() => first({ ptxCoef: 1 }), TypeError, "ARGUMENT", "ptxCoef", "pretraining");
    const adaptive = { klCoef: 0.1, klController: "adaptive" as const };
    await expectError(
      () => klController({ ...adaptive, klTarget: undefined, klHorizon: 9 }),
      RangeError,
      "RANGE",
      "klTarget",
      "adaptive",
    );
    await expectError(() => first({ ...adaptive, klTarget: 0 }), RangeError, "RANGE", "klTarget", "0");
    await expectError(() => klController({ ...adaptive, klTarget: 6 }), RangeError, "RANGE", "klHorizon", "adaptive");
    await expectError(() => klController({ klCoef: NaN, klController: "fixed" }), RangeError, "RANGE", "klCoef", "NaN");
    await expectError(
      () => klController({ klCoef: 1, klController: "fix" as "fixed" }),
      TypeError,
      "CHOICE",
      "klController",
      "fix",
    );
  });
  test("wants prompts", () => expectError(() => first({}, () => []), RangeError, "EMPTY", "update 1", "prompts"));
  test("tells what a reward function threw, whatever it was", async () => {
    const failing = (reason: unknown) => () => Promise.reject(reason);
    await expectError(
      () => first({}, request, failing("out of quota")),
      TypeError,
      "REWARD",
      "completion 0",
      '"out of quota"',
    );
    await expectError(() => first({}, request, failing(undefined)), TypeError, "REWARD", "completion 0", "undefined");
    await expectError(
      () => first({}, request, failing(new Error("a timeout"))),
      TypeError,
      "REWARD",
      "completion 0 failed: a timeout",
    );
  });
});

describe("batches", () => {
  test("of a text that is too short name its tokens and the length", async () => {
    const options = { length: 16, batch: 1, seed: 0 };
    for (const tokens of [10, 20, 32])
      await expectError(
        () => textBatches(new Int32Array(tokens), options),
        RangeError,
        "EMPTY",
        `${tokens} tokens`,
        "33",
        "16",
      );
    expect(textBatches(new Int32Array(33), options)(5)[0].completion.length).toBe(16);
    await expectError(() => textBatches(new Int32Array(99), { ...options, length: 0 }), RangeError, "RANGE", "length");
    await expectError(() => textBatches(new Int32Array(99), { ...options, batch: 0.5 }), RangeError, "RANGE", "batch");
  });
  test("of no items, or of none in each, are refused", async () => {
    await expectError(() => itemBatches([], { batch: 2, seed: 0 }), RangeError, "EMPTY", "no items");
    await expectError(() => itemBatches([1], { batch: 0, seed: 0 }), RangeError, "RANGE", "batch", "0");
  });
  test("in windows leave something before what is predicted", async () => {
    const tokens = Int32Array.from({ length: 10 }, (_, i) => i);
    for (const stride of [0, 4, 5])
      await expectError(() => windows(tokens, { length: 4, stride }), RangeError, "RANGE", "stride", `${stride}`);
    const all = windows(tokens, { length: 4, stride: 3 });
    expect(all.flatMap(({ completion }) => Array.from(completion))).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for (const { prompt } of all) expect(prompt.length).toBeGreaterThan(0);
  });
});

describe("a file", () => {
  const file = async (name: string, ...lines: string[]) => {
    await writeFile(join(folder, name), lines.join("\n") + "\n");
    return join(folder, name);
  };
  test("names the line that is not JSON", async () =>
    expectError(
      async () => readPrompts(await file("a.jsonl", '{"prompt":"x"}', '{"prompt":')),
      TypeError,
      "JSON",
      "a.jsonl:2",
    ));
  test("names the column that is missing, and the line", async () => {
    await expectError(
      async () => readPrompts(await file("b.jsonl", '{"prompt":"x"}', '{"text":"y"}')),
      TypeError,
      "COLUMN",
      "b.jsonl:2",
      '"prompt"',
    );
    await expectError(
      async () => readComparisons(await file("c.jsonl", '{"prompt":"x","chosen":"a"}')),
      TypeError,
      "COLUMN",
      "c.jsonl:1",
      '"rejected"',
    );
    await expectError(
      async () => readComparisons(await file("d.jsonl", '{"prompt":"x","chosen":"a","rejected":""}')),
      TypeError,
      "COLUMN",
      '"rejected"',
      "empty",
    );
    await expectError(
      async () =>
        readCompletions(await file("e.jsonl", '{"prompt":"x","completion":"a","prompt_ids":[1],"completion_ids":[]}')),
      TypeError,
      "COLUMN",
      '"completion_ids"',
    );
  });
  test("that is not there is named", () =>
    expectError(() => readPrompts(join(folder, "none.jsonl")), TypeError, "FILE", "none.jsonl"));
});

describe("a configuration", () => {
  const config = async (text: string, sets: string[] = []) => {
    await writeFile(join(folder, "config.yaml"), text);
    return readConfig(join(folder, "config.yaml"), sets);
  };
  test("has its defaults, takes a file and overrides", async () => {
    const { ppo: options, seed } = await config("seed: 4\nppo:\n  klCoef: 0.3\n  updates: 7\n", ["ppo.klCoef=0.1"]);
    expect([seed, options.klCoef, options.updates, options.clipRatioLow]).toEqual([4, 0.1, 7, 0.2]);
  });
  test("names an unknown key, its line and the nearest known one", async () => {
    await expectError(
      () => config("seed: 1\nppo:\n  klCoeff: 0.1\n"),
      TypeError,
      "CONFIG",
      "config.yaml:3",
      "ppo.klCoeff",
      "ppo.klCoef?",
    );
    await expectError(
      () => config("seed: 1\n\npppo:\n  klCoef: 0.1\n"),
      TypeError,
      "CONFIG",
      "config.yaml:3",
      "pppo",
      "ppo?",
    );
    await expectError(() => config("", ["ppo.klCoff=1"]), TypeError, "CONFIG", "--set ppo.klCoff=1", "ppo.klCoef?");
    await expectError(
      () => config("sft:\n  klCoef: 1\n"),
      TypeError,
      "CONFIG",
      "config.yaml:2",
      "sft.klCoef",
      "ppo.klCoef?",
    );
  });
  test("names a wrong type", async () => {
    await expectError(
      () => config("ppo:\n  updates: many\n"),
      TypeError,
      "CONFIG",
      "config.yaml:2",
      "ppo.updates",
      "many",
      "number",
    );
    await expectError(
      () => config("ppo:\n  klController: fix\n"),
      TypeError,
      "CONFIG",
      "config.yaml:2",
      "ppo.klController",
      '"fix"',
      "adaptive",
    );
    await expectError(() => config("ppo: 3\n"), TypeError, "CONFIG", "config.yaml:1", "ppo");
    await expectError(() => config("ppo:\n  - a\n b: ["), TypeError, "CONFIG", "config.yaml");
  });
  test("names an option that the chosen algorithm does not use", async () => {
    await expectError(
      () => config("ppo:\n  klTarget: 5\n"),
      TypeError,
      "CONFIG",
      "config.yaml:2",
      "ppo.klTarget",
      "klController is fixed",
    );
    expect((await config("ppo:\n  klTarget: 5\n  klController: adaptive\n")).ppo.klTarget).toBe(5);
    await expectError(
      () => config("collect:\n  temperature: 0\n  topK: 3\n"),
      TypeError,
      "CONFIG",
      "config.yaml:3",
      "collect.topK",
    );
  });
  test("holds out less than all", () =>
    expectError(() => config("reward:\n  heldOut: 1\n"), TypeError, "CONFIG", "config.yaml:2", "reward.heldOut"));
  test("that lies where a run keeps its own stays as it was written, or is not taken away", async () => {
    const own = "# mine\nseed: 4\n";
    const mine = await config(own);
    const file = join(folder, "config.yaml");
    const open = async (other: Config, resume = false) => (await Run.open(folder, other, on, resume))[Symbol.dispose]();
    for (const resume of [false, true]) {
      await open(mine, resume);
      expect(await readFile(file, "utf8")).toBe(own);
    }
    await expectError(() => open({ ...mine, seed: 5 }), TypeError, "CONFIG", file);
    await expectError(() => open({ ...mine, seed: 5 }, true), TypeError, "RESUME", file);
    expect(await readFile(file, "utf8")).toBe(own);
    await writeFile(file, configText(mine)); // as a run writes it, and none did
    await expectError(() => open({ ...mine, seed: 5 }), TypeError, "CONFIG", file);
    await rm(file);
    await open(mine); // what a run wrote, another replaces
    await open({ ...mine, seed: 5 });
    expect(await readFile(file, "utf8")).toBe(configText({ ...mine, seed: 5 }));
  });
  test("names options that do not fit each other", () =>
    expectError(
      () => config("model:\n  heads: 5\n"),
      TypeError,
      "CONFIG",
      "config.yaml:2",
      "model.heads",
      "5",
      "divisor",
    ));
});
