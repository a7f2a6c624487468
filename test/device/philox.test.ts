import { describe, expect, test } from "@jest/globals";
import { philox, Random } from "../../lib/device/philox.js";

const hex = (words: Iterable<number>) => Array.from(words, (word) => word.toString(16).padStart(8, "0")).join(" ");

describe("Philox 4x32-10", () => {
  // Known answers of Random123 (Salmon et al. 2011), file kat_vectors: counter, key, result.
  test.each([
    [[0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"],
    [[0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff], [0xffffffff, 0xffffffff], "408f276d 41c83b0e a20bc7c6 6d5451fd"],
    [[0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0], "d16cfe09 94fdcceb 5001e420 24126ea1"],
  ])("turns %j under %j into the known answer", ([c0, c1, c2, c3], [key0, key1], wanted) => {
    const out = new Uint32Array(4);
    philox(key0, key1, c0, c1, c2, c3, out);
    expect(hex(out)).toBe(wanted);
  });
});

describe("Random", () => {
  test("takes 53 bits of the words in order", () => {
    const out = new Uint32Array(4);
    philox(7, 3, 1, 2, 0, 0, out);
    const wanted = [0, 2].map((i) => Number((BigInt(out[i] >>> 5) << 26n) | BigInt(out[i + 1] >>> 6)) / 2 ** 53);
    const random = new Random(7, 3, 1, 2);
    expect([random.uniform(), random.uniform()]).toEqual(wanted);
  });

  test("goes on from a stored state with the number that would have come next", () => {
    for (let drawn = 0; drawn < 6; drawn++) {
      const random = new Random(11, 5, 9, 8, 7);
      for (let i = 0; i < drawn; i++) random.uniform();
      const again = Random.from(JSON.parse(JSON.stringify(random.state)));
      for (let i = 0; i < 5; i++) expect(again.uniform()).toBe(random.uniform());
    }
  });

  test("gives other numbers for another seed, stream or counter, and the same for the same", () => {
    const first = (random: Random) => Array.from({ length: 4 }, () => random.uniform()).join();
    const drawn = [
      new Random(0, 0),
      new Random(1, 0),
      new Random(0, 1),
      new Random(0, 0, 1),
      new Random(0, 0, 0, 1),
      new Random(0, 0, 0, 0, 1),
    ].map(first);
    expect(new Set(drawn).size).toBe(drawn.length);
    expect(first(new Random(0, 0).at(0, 1))).toBe(drawn[4]);
  });

  test("is uniform: mean, variance and shuffles are within five deviations", () => {
    const random = new Random(1, 2);
    const n = 100_000;
    let sum = 0;
    let squares = 0;
    for (let i = 0; i < n; i++) {
      const u = random.uniform();
      sum += u;
      squares += (u - 0.5) ** 2;
    }
    expect(Math.abs(sum / n - 0.5)).toBeLessThan(5 * Math.sqrt(1 / 12 / n));
    expect(Math.abs(squares / n - 1 / 12)).toBeLessThan(5 * Math.sqrt(1 / 180 / n));
    const counts = new Map<string, number>();
    for (let i = 0; i < 24_000; i++) {
      const order = random.shuffle([0, 1, 2, 3]).join("");
      counts.set(order, (counts.get(order) ?? 0) + 1);
    }
    expect(counts.size).toBe(24);
    for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(5 * Math.sqrt(1000));
  });

  test("refuses a seed, stream, counter or n that is not a whole number in range", () => {
    for (const wrong of [-1, 0.5, 2 ** 32, Number.NaN]) {
      expect(() => new Random(wrong, 0)).toThrow(
        expect.objectContaining({ code: "RANGE", message: expect.stringContaining("seed") }),
      );
      expect(() => new Random(0, wrong)).toThrow(
        expect.objectContaining({ code: "RANGE", message: expect.stringContaining("stream") }),
      );
      expect(() => new Random(0, 0, 0, wrong)).toThrow(
        expect.objectContaining({ code: "RANGE", message: expect.stringContaining("counter[1]") }),
      );
    }
    for (const wrong of [0, -3, 1.5, Number.NaN])
      expect(() => new Random(0, 0).below(wrong)).toThrow(expect.objectContaining({ code: "RANGE" }));
  });
});
