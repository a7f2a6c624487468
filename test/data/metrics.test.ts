import { describe, expect, test } from "@jest/globals";
import { calibration, distinctN, repetition, wilson, winRate } from "../../lib/data/metrics.js";
import { Random, seed } from "../random.js";

describe("distinct-n and repetition", () => {
  test("count n-grams over all sequences, and within each", () => {
    expect(
      distinctN(
        [
          ["a", "b", "a", "b"],
          ["a", "b"],
        ],
        2,
      ),
    ).toBe(2 / 4);
    expect(
      distinctN(
        [
          [1, 11],
          [11, 1],
          [1, 1, 1],
        ],
        2,
      ),
    ).toBe(3 / 4);
    expect(repetition([["a", "b", "a", "b"], ["c", "d"], ["e"]], 2)).toBeCloseTo(1 / 6, 15);
    expect(repetition([Int32Array.of(5, 5, 5, 5)], 1)).toBe(0.75);
  });

  test("do not take two words for one that looks like them", () => {
    expect(
      distinctN(
        [
          ["a,b", "c"],
          ["a", "b,c"],
        ],
        2,
      ),
    ).toBe(1);
  });

  test("are NaN where there is no n-gram", () => {
    expect(distinctN([["a"]], 2)).toBeNaN();
    expect(repetition([], 2)).toBeNaN();
  });
});

describe("the win rate", () => {
  test("counts ties half", () => {
    expect(winRate([1, 2, 3, 0], [0, 2, 1, 5])).toMatchObject({ rate: 0.625, wins: 2, ties: 1, losses: 1 });
  });

  // Wilson's interval of 81 of 263 at 95 %, from Newcombe 1998, table I; and of 0 of 20 and 1 of 29.
  test.each([
    [81, 263, 0.2553, 0.3662],
    [15, 148, 0.0624, 0.1605],
    [0, 20, 0, 0.1611],
    [1, 29, 0.0061, 0.1718],
  ])("has Wilson's interval: %i of %i", (wins, n, low, high) => {
    const [from, to] = wilson(wins / n, n);
    expect(from).toBeCloseTo(low, 4);
    expect(to).toBeCloseTo(high, 4);
  });

  test("covers the truth about 95 times in 100", () => {
    const random = new Random("wilson");
    let covered = 0;
    for (let round = 0; round < 1000; round++) {
      const ours = Array.from({ length: 100 }, () => Number(random.uniform() < 0.8));
      const [low, high] = winRate(
        ours,
        ours.map(() => 0.5),
      ).interval;
      covered += Number(low <= 0.8 && 0.8 <= high);
    }
    expect({ seed, covered: covered > 910 && covered < 985 }).toEqual({ seed, covered: true });
  });

  test("refuses nothing at all, different numbers and NaN", () => {
    expect(() => winRate([], [])).toThrow(expect.objectContaining({ code: "SHAPE" }));
    expect(() => winRate([1], [1, 2])).toThrow(expect.objectContaining({ code: "SHAPE" }));
    expect(() => winRate([Number.NaN], [1])).toThrow(expect.objectContaining({ code: "NAN" }));
  });
});

describe("calibration", () => {
  test("is without error where each probability comes true as often", () => {
    const predictions = [0.05, 0.25, 0.75, 1].flatMap((probability) =>
      Array.from({ length: 20 }, (_, i) => ({ probability, outcome: i < probability * 20 })),
    );
    const { error, bins } = calibration(predictions);
    expect(error).toBeCloseTo(0, 12);
    expect(bins.map(({ from, count }) => [from, count])).toEqual([
      [0, 20],
      [0.2, 20],
      [0.7, 20],
      [0.9, 20],
    ]);
  });

  test("weighs the distance of each bin by its count", () => {
    const { error, brier } = calibration([
      { probability: 0.9, outcome: false },
      { probability: 0.1, outcome: 0 },
      { probability: 0.1, outcome: 0.5 },
    ]);
    expect(error).toBeCloseTo((0.9 + 2 * 0.15) / 3, 12);
    expect(brier).toBeCloseTo((0.81 + 0.01 + 0.16) / 3, 12);
  });

  test("refuses what is no probability", () => {
    expect(() => calibration([{ probability: Number.NaN, outcome: true }])).toThrow(
      expect.objectContaining({ code: "RANGE" }),
    );
  });
});
