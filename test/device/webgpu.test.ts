import { execFile } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { root } from "../../lib/device/native.js";
import { specs } from "../../lib/device/ops.js";
import { device, ops, Tensor, type Device } from "../../lib/index.js";
import { fromHalf } from "../../lib/tensor/half.js";
import { run } from "../../lib/tensor/op.js";
import {
  allTruths,
  casesOf,
  expectBits,
  holdToAbsentTerms,
  holdToGradient,
  holdToLossGradients,
  holdToManyPairs,
  holdToReference,
  holdToTemperatures,
  narrowed,
  runOn,
  sizes,
} from "../hold.js";
import { Random, seed } from "../random.js";
import { normal } from "../truth.js";

// The ops that the device must have; every other op of the list is one that it says it lacks.
const OPS = `add sub mul scale clamp clampGrad accumulate fill sum
  gae gaePadded tokenRewards whiten moments sequenceSum sequenceSumGrad
  policyLoss valueLoss preferenceLoss
  logprob logprobGrad linearLogprob linearLogprobGrad linearPolicyLoss
  attention attentionGrad`.split(/\s+/);

/**
 * With all that the adapter has; on the plain paths; with bindings so small that heads and long
 * tensors are split over many.
 */
const ways = { full: {}, plain: { features: [] }, split: { maxBinding: 32768 } };

const truths = await allTruths();
const devices: Record<string, Device> = {};
let missing: string | undefined;
try {
  for (const [name, options] of Object.entries(ways)) devices[name] = await device("webgpu", options);
} catch (error) {
  missing = (error as Error).message;
}

if (missing && !process.env.CI) {
  console.warn(`Not run: every test of the WebGPU device. ${missing}`);
  test.skip("the WebGPU device", () => undefined);
} else {
  beforeAll(() => {
    if (missing) throw new Error(missing);
    console.log(`seed ${seed}, adapter ${devices.full.isa}`);
  });
  afterAll(() => Promise.all(Object.values(devices).map((on) => on.close())));

  describe.each(truths.filter(({ op }) => OPS.includes(op)).map((entry) => [entry.op, entry] as const))(
    "%s",
    (name, entry) => {
      test.each(Object.keys(ways))("equals its f64 reference (%s)", (way) => holdToReference(devices[way], entry));
      test("has the same bits on every run, with and without the adapter's features", async () => {
        for (const inputs of casesOf(entry)) {
          const wanted = await runOn(devices.full, entry, inputs);
          for (const way of ["full", "plain"])
            expectBits(await runOn(devices[way], entry, inputs), wanted, `${name} (${sizes(inputs)}), ${way}`);
        }
      });
      if (specs.get(name)!.arguments.some((argument) => devices.full.halfDtype(name, argument)))
        test("in f16 has the bits of what was widened, with and without the adapter's features, and equals the f64 reference of it", async () => {
          for (const drawn of casesOf(entry)) {
            const inputs = narrowed(devices.full, entry, drawn);
            for (const way of Object.keys(ways))
              expectBits(
                await runOn(devices[way], entry, inputs, true),
                await runOn(devices[way], entry, inputs),
                `${name} (${sizes(inputs)}), ${way}`,
              );
          }
          await holdToReference(devices.full, entry, true);
        });
      // few places: the reference is slow, and what the gradient consists of is held to its own
      if (entry.gradient)
        test("has the gradient of its reference", () => holdToGradient(devices.full, entry, new Random(name), 4));
      if (entry.gradients) test("returns the gradient of its loss", () => holdToLossGradients(devices.full, entry));
    },
  );

  test.each(Object.keys(ways))("log-probs hold at any temperature (%s)", (way) => holdToTemperatures(devices[way]));

  describe.each([...specs.keys()].filter((name) => !OPS.includes(name)))("%s", (name) => {
    test("is an op that webgpu says it lacks", () => {
      expect(devices.full.has(name)).toBe(false);
      const missed = () => devices.full.call(specs.get(name)!, []);
      expect(missed).toThrow(
        expect.objectContaining({ code: "OP", message: expect.stringMatching(new RegExp(`^${name}: .*webgpu`)) }),
      );
    });
  });

  test.each(Object.keys(ways))(
    "a term of the policy's loss whose coefficient is 0 enters neither loss nor gradient (%s)",
    (way) => holdToAbsentTerms(devices[way]),
  );
  test.each([
    [5000, 1],
    [5000, 3],
    [2 ** 17, 2 ** 18],
  ])("the preference loss holds for %d pairs over %d scores", (P, M) => holdToManyPairs(devices.full, P, M));
  test("has the ops that it must have", () => expect(OPS.filter((name) => !devices.full.has(name))).toEqual([]));

  test("the README's example runs on it", async () => {
    const [, code] = (await readFile(join(root, "README.md"), "utf8")).match(/<!-- example -->\s+```js\n(.*?)```/s)!;
    await mkdir(join(root, "build"), { recursive: true });
    const file = join(root, "build/example-webgpu.mjs");
    await writeFile(file, code.replace('device("cpu")', 'device("webgpu")'));
    const { stdout } = await promisify(execFile)(process.execPath, [file]);
    expect(stdout.match(/Float32Array\(\d\)/g)).toEqual([
      "Float32Array(3)",
      "Float32Array(3)",
      "Float32Array(5)",
      "Float32Array(1)",
    ]);
    expect(stdout).not.toContain("NaN");
  });

  test("logits are split by rows where a binding holds few of them", async () => {
    const few = await device("webgpu", { maxBinding: 8192 });
    for (const name of ["logprob", "logprobGrad"])
      await holdToReference(
        few,
        truths.find(({ op }) => op === name)!,
      );
    await few.close();
  });

  describe("a sequence alone has the bits that it has in a batch:", () => {
    const random = new Random("alone");
    const lengths = [3, 70, 1, 41, 300];
    const N = lengths.reduce((a, b) => a + b, 0);
    const starts = lengths.map((_, b) => lengths.slice(0, b).reduce((x, y) => x + y, 0));
    const numbers = (...shape: number[]) => normal(random, shape).data as Float32Array;
    const cut = (data: Float32Array, b: number, width: number) =>
      data.slice(starts[b] * width, (starts[b] + lengths[b]) * width);

    /** `f` of the batch against `f` of each sequence: inputs and outputs hold `width` numbers per token. */
    async function alone(
      inputs: [Float32Array, number][],
      f: (inputs: Float32Array[], cuSeqlens: Int32Array) => [Tensor, number][],
    ): Promise<void> {
      const offsets = Int32Array.from([...starts, N]);
      const together = f(
        inputs.map(([data]) => data),
        offsets,
      );
      for (let b = 0; b < lengths.length; b++) {
        const one = f(
          inputs.map(([data, width]) => cut(data, b, width)),
          Int32Array.of(0, lengths[b]),
        );
        for (let i = 0; i < one.length; i++) {
          const wanted = (await one[i][0].read()) as Float32Array;
          const got = cut((await together[i][0].read()) as Float32Array, b, together[i][1]);
          expect(Buffer.from(got.buffer).equals(Buffer.from(wanted.buffer))).toBe(true);
        }
      }
    }
    const on = (data: Float32Array, ...shape: number[]) => Tensor.from(data, shape, devices.full);

    test("attention and its gradient", async () => {
      const [H, G, D] = [4, 2, 19];
      const inputs = [H, G, G, H, H].map((heads): [Float32Array, number] => [numbers(N, heads, D), heads * D]);
      await alone([...inputs, [numbers(N, H), H]], ([q, k, v, dO, o, lse], cuSeqlens) => {
        const n = lse.length / H;
        const given = { q: on(q, n, H, D), k: on(k, n, G, D), v: on(v, n, G, D), cuSeqlens, scale: 0.2 };
        const forward = run("attention", given);
        const { dq, dk, dv } = run("attentionGrad", {
          ...given,
          dO: on(dO, n, H, D),
          o: on(o, n, H, D),
          lse: on(lse, n, H),
        });
        return [
          [forward.o, H * D] as const,
          [forward.lse, H] as const,
          [dq, H * D] as const,
          [dk, G * D] as const,
          [dv, G * D] as const,
        ].map(([tensor, width]) => [tensor, width]);
      });
    });
    test("gae", async () => {
      await alone(
        [numbers(N), numbers(N)].map((data) => [data, 1]),
        ([rewards, values], cuSeqlens) => {
          const { advantages, returns } = ops.gae(on(rewards, rewards.length), values, cuSeqlens, { gamma: 0.99 });
          return [advantages, returns].map((tensor) => [tensor, 1]);
        },
      );
    });
    test("log-probs of the head", async () => {
      const [C, V] = [33, 1031];
      const weight = on(numbers(V, C), V, C);
      await alone([[numbers(N, C), C]], ([h]) => {
        const n = h.length / C;
        const rows = Int32Array.from({ length: n }, (_, i) => i);
        const { logp, lse, entropy } = ops.linearLogprob(on(h, n, C), weight, rows, new Int32Array(n).fill(7));
        return [logp, lse, entropy].map((tensor) => [tensor, 1]);
      });
    });
  });

  describe("the device", () => {
    const ints = (...values: number[]) => Tensor.from(Int32Array.from(values), [values.length], devices.full);
    const on = (data: Float32Array | Float64Array, shape: number[] = [data.length]) =>
      Tensor.from(data, shape, devices.full);

    test("keeps the order of writes, ops and reads, also of large ones", async () => {
      const large = new Float32Array(100_000).fill(1);
      const x = on(large);
      const y = ops.add(x, x);
      x.write(large.fill(5));
      const z = ops.add(x, y);
      x.write(large.fill(9));
      expect([(await z.read())[99_999], (await y.read())[0], (await x.read())[1]]).toEqual([7, 2, 9]);
    });

    test("views share memory with what they view, also off the alignment of bindings, as input and output of one call", async () => {
      const x = on(
        Float32Array.from({ length: 60 }, (_, i) => i),
        [20, 3],
      );
      run("add", { a: x.rows(1, 3), b: x.rows(5, 7), y: x.rows(18, 20) });
      expect(Array.from((await x.read()).slice(51))).toEqual([51, 52, 53, 18, 20, 22, 24, 26, 28]);
      expect(Array.from(await ops.sum(x.rows(19, 20).reshape([3])).read())).toEqual([78]);
    });

    test("f64 tensors keep 48 bits", async () => {
      const numbers = Float64Array.of(1 / 3, -1e-7, 123456789.123, 0, 1e30);
      const got = await on(numbers).read();
      numbers.forEach((x, i) => expect(Math.abs(got[i] - x)).toBeLessThanOrEqual(Math.abs(x) * 2 ** -47));
    });

    /** What lies there, whatever op failed on it. */
    const trusted = (tensor: Tensor) => {
      tensor.device.trust(tensor.address);
      return tensor.read();
    };
    test("a bad id or offset on the device is an error of every read of what it spoilt, which names op and argument; outputs are NaN", async () => {
      const logits = on(new Float32Array(12), [3, 4]);
      const { logp } = ops.logprob(logits, ints(0, 4, 1));
      await expect(logp.read()).rejects.toThrow(
        expect.objectContaining({ code: "ID", message: "logprob: y[1] is 4, wanted 0 to 3" }),
      );
      await expect(logp.read()).rejects.toThrow("logprob: y[1] is 4");
      expect(Array.from(await trusted(logp))).toEqual([NaN, NaN, NaN]);

      for (const offsets of [
        [0, 2, 1, 3],
        [1, 2, 2, 3],
        [0, 1, 2, 4],
        [0, -2000000000, 2000000000, 3],
      ]) {
        const { advantages } = ops.gae(on(new Float32Array(3)), new Float32Array(3), ints(...offsets));
        await expect(advantages.read()).rejects.toThrow(
          expect.objectContaining({ code: "OFFSETS", message: expect.stringContaining("gae: cuSeqlens[") }),
        );
        expect(Array.from(await trusted(advantages))).toEqual([NaN, NaN, NaN]);
      }

      const q = on(new Float32Array(12), [3, 1, 4]);
      const o = ops.attention(q, q, q, Int32Array.of(0, 1, 3), { prefix: ints(-1, 1) });
      await expect(o.read()).rejects.toThrow(
        expect.objectContaining({ code: "ARGUMENT", message: expect.stringContaining("attention: prefix[1] is 1") }),
      );
      expect((await trusted(o)).every(Number.isNaN)).toBe(true);
    });

    test("an error is that of what its call spoilt, of what was computed from that, and of nothing else", async () => {
      const logits = on(new Float32Array(12), [3, 4]);
      const first = ops.logprob(logits, ints(0, -1, 1)).logp;
      const { logp } = ops.logprob(logits, ints(0, 1, 1)); // the same op, and good
      const second = ops.logprob(logits, ints(0, 1, 9)).entropy;
      const sum = ops.sum(ops.add(logp, second));
      const doubled = ops.scale(first, 2);
      expect(Array.from(await logp.read())).toEqual([0, 1, 2].map(() => Math.fround(-Math.log(4))));
      await expect(doubled.read()).rejects.toThrow("logprob: y[1] is -1, wanted 0 to 3");
      await expect(sum.read()).rejects.toThrow(
        expect.objectContaining({ code: "ID", message: "logprob: y has a number out of its range" }),
      );
      doubled.write(Float32Array.of(1, 2, 3));
      expect(Array.from(await doubled.read())).toEqual([1, 2, 3]);
      run("scale", { x: logp, factor: 0, shift: 7, y: first });
      expect(Array.from(await first.read())).toEqual([7, 7, 7]);
    });

    test("an error is told apart from those of a thousand calls before the read", async () => {
      const logits = on(new Float32Array(4), [1, 4]);
      const all = Array.from({ length: 1100 }, (_, i) => ops.logprob(logits, ints(i % 500 === 7 ? 4 : 1)).logp);
      const told = await Promise.all(
        all.map((logp) =>
          logp.read().then(
            () => "",
            ({ code }: { code: string }) => code,
          ),
        ),
      );
      expect(told.flatMap((code, i) => (code ? [`${i} ${code}`] : []))).toEqual(["7 ID", "507 ID", "1007 ID"]);
    });

    test("an error that no read told is that of closing", async () => {
      const own = await device("webgpu");
      ops.logprob(Tensor.from(new Float32Array(4), [1, 4], own), Tensor.from(Int32Array.of(4), [1], own));
      await expect(own.close()).rejects.toThrow("logprob: y[0] is 4");
    });

    test("NaN among the logits makes its row NaN; -inf and -1e30 are absent", async () => {
      const { logp } = ops.logprob(
        on(Float32Array.of(0, NaN, 0, 0, -Infinity, -1e30, 0, NaN, 1), [3, 3]),
        Int32Array.of(0, 0, 2),
      );
      expect(Array.from(await logp.read())).toEqual([NaN, 0, NaN]);
    });

    test("what stands in masked slots changes no bit", async () => {
      const [random, M] = [new Random("masked"), 40];
      const mask = Int32Array.from({ length: M }, () => random.below(2));
      const per = (rubbish: number) => (_: string, k: number) => {
        const own = new Random(`masked ${k}`);
        return Float32Array.from({ length: M }, (_, i) => (mask[i] ? own.normal() : rubbish));
      };
      const common = {
        cuSeqlens: Int32Array.of(0, 17, 17, M),
        mask,
        aggregation: "seq-mean-token-mean",
        denominator: 3,
        scale: 1,
      } as const;
      let wanted: string | undefined;
      for (const rubbish of [0, NaN, Infinity, 1e30]) {
        const [logp, old, advantages, ref, values, returns] = [
          "logp",
          "old",
          "advantages",
          "ref",
          "values",
          "returns",
        ].map(per(rubbish));
        const options = {
          objective: "clipped-ratio",
          clipRatioLow: 0.2,
          clipRatioHigh: 0.2,
          clipRatioC: 3,
          logRatioClamp: 20,
        };
        const kl = { refLogp: ref, klCoef: 0.1, estimator: "k3", entropyCoef: 0 };
        const policy = run("policyLoss", {
          logp: on(logp),
          oldLogp: old,
          advantages,
          ...common,
          ...options,
          ...kl,
          stats: on(new Float64Array(12)),
        });
        const value = run("valueLoss", {
          values: on(values),
          oldValues: old,
          returns,
          ...common,
          clipRange: 0.2,
          stats: on(new Float64Array(8)),
        });
        const { advantages: gae } = ops.gae(on(logp), values, common.cuSeqlens, { mask });
        const white = ops.whiten(on(logp), common.cuSeqlens, { mask });
        const all = [policy.loss, policy.dlogp, policy.stats, value.loss, value.dvalues, value.stats, gae, white];
        const got = (await Promise.all(all.map((tensor) => tensor.read())))
          .map((data) => Buffer.from(data.buffer).toString("hex"))
          .join();
        wanted ??= got;
        expect(got).toBe(wanted);
        expect((await policy.loss.read())[0]).not.toBeNaN();
      }
    });

    test("whitening one token is refused by the next read", async () => {
      const y = ops.whiten(on(Float32Array.of(3)), Int32Array.of(0, 1));
      await expect(y.read()).rejects.toThrow(
        expect.objectContaining({ code: "ARGUMENT", message: "whiten: whitening needs at least two unmasked tokens" }),
      );
      expect(await trusted(y)).toEqual(Float32Array.of(NaN));
    });

    test("sequences may be more than a dimension of a grid", async () => {
      const n = 70_000;
      const offsets = Int32Array.from({ length: n + 1 }, (_, i) => i);
      const x = on(
        Float32Array.from({ length: n }, (_, i) => Math.sin(i)),
        [n, 1, 1],
      );
      const o = ops.attention(x, x, x, offsets);
      expect(await o.read()).toEqual(await x.read()); // each token sees itself alone
      const sums = ops.sequenceSum(x.reshape([n]), offsets);
      expect(await sums.read()).toEqual(await x.read());
    });

    test("f16 numbers are rounded to nearest, also where they are few or a row of an odd size; the plain path widens every one exactly", async () => {
      const { features } = (devices.full as unknown as { gpu: GPUDevice }).gpu;
      if (process.env.CI) expect(features.has("shader-f16")).toBe(true);
      const halves = Uint16Array.from({ length: 2 ** 16 }, (_, i) => i).filter((half) => (half & 0x7fff) <= 0x7bff); // finite
      const wide = fromHalf(halves);
      for (const way of ["full", "plain"]) {
        // of a vocabulary of one, lse is the logit
        const logits = Tensor.from(halves, [halves.length, 1], devices[way], "f16");
        const { lse } = ops.logprob(logits, new Int32Array(halves.length));
        expect([way, await lse.read()]).toEqual([way, wide.map((x) => x + 0)]);
      }
      const odd = Tensor.from(
        Float32Array.of(1, 2 ** -24, 2 ** -25, 3 * 2 ** -25, 65519, 65520, -0, 1 + 2 ** -11, 1 + 3 * 2 ** -11),
        [3, 3],
        devices.full,
        "f16",
      );
      expect(Array.from(await odd.read())).toEqual([0x3c00, 1, 0, 2, 0x7bff, 0x7c00, 0x8000, 0x3c00, 0x3c02]);
      expect(Array.from(await odd.rows(1, 2).read())).toEqual([2, 0x7bff, 0x7c00]);
      expect(() => odd.rows(1, 2).write(new Uint16Array(3))).toThrow(expect.objectContaining({ code: "ARGUMENT" }));
      const cpu = await device("cpu", { threads: 1 });
      const weight = Tensor.from(new Float32Array(6), [2, 3], cpu, "f16");
      expect(() =>
        ops.linearLogprob(Tensor.from(new Float32Array(3), [1, 3], cpu), weight, Int32Array.of(0), Int32Array.of(0)),
      ).toThrow(
        expect.objectContaining({ code: "DTYPE", message: "linearLogprob: weight is f16, wanted f32 or bf16" }),
      );
      await cpu.close();
    });

    test("it tells how long the adapter worked, where the adapter does", async () => {
      for (const way of ["full", "plain"]) {
        await ops.sum(Tensor.from(new Float32Array(1 << 20), undefined, devices[way])).read();
        const { busySeconds } = devices[way].memory();
        expect([way, busySeconds > 0]).toEqual([way, way === "full"]);
      }
    });

    test("memory is reused once it is released, and given back on demand", async () => {
      const own = await device("webgpu");
      const bytes = 4 * 2 ** 20;
      for (let i = 0; i < 5; i++) Tensor.from(new Float32Array(bytes / 4), undefined, own).dispose();
      const after = own.memory();
      expect(after.held).toBeLessThan(2 * bytes);
      expect(after.peak - after.current).toBeGreaterThanOrEqual(bytes);
      own.resetPeak();
      expect(own.memory().held).toBeLessThan(bytes);
      await own.close();
      expect(() => own.allocate(4)).toThrow(expect.objectContaining({ code: "DEVICE" }));
    });

    test("a tensor beyond the adapter's buffers is refused", () => {
      expect(() => Tensor.empty([2 ** 33], "f32", devices.full)).toThrow(expect.objectContaining({ code: "MEMORY" }));
    });

    test("where it is lost, calls and reads say so", async () => {
      const own = await device("webgpu");
      const x = Tensor.from(new Float32Array(4), [4], own);
      (own as unknown as { gpu: GPUDevice }).gpu.destroy();
      await expect(x.read()).rejects.toThrow(expect.objectContaining({ code: "LOST" }));
      expect(() => ops.add(x, x)).toThrow(expect.objectContaining({ code: "LOST" }));
      await own.close();
    });
  });
}
