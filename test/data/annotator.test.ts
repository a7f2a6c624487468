import { describe, expect, test } from "@jest/globals";
import { Annotator, sentiment } from "../../lib/data/annotator.js";
import { label, rank } from "../../lib/data/labels.js";
import { Random } from "../../lib/device/philox.js";
import { seed } from "../random.js";

const random = () => new Random(seed, 40);

describe("sentiment", () => {
  test.each([
    ["", 0],
    ["Great success.", 5],
    ["GREAT\u2019s success", 2],
    ["not a good thing", -2.25],
    ["not good at all", -2],
    ["it isn't good", -2.25],
    ["not in this way, good", 3],
    ["not one of them all good", 3],
    ["no fun", -3],
    ["the United States", 0],
    ["a united people", 1],
    ["well-being", 2],
    ["constructor __proto__ toString", 0],
  ])("of %j is %p", (text, wanted) => expect(sentiment(text)).toBe(wanted));
});

describe("an annotator", () => {
  const score = (text: string) => Number(text);

  test("without noise prefers the higher score, and sees no difference in a tie", () => {
    const annotator = new Annotator(0, 3, score);
    expect(annotator.compare("2", "1", random())).toEqual({ agreement: 1, preferred: 0, margin: 1 });
    expect(annotator.compare("1", "2", random())).toEqual({ agreement: 0, preferred: 1, margin: 1 });
    expect(annotator.compare("1", "1", random())).toMatchObject({ agreement: 0.5, margin: 0 });
  });

  test("with noise votes as Bradley and Terry have it, within five deviations", () => {
    const annotator = new Annotator(2, 1, score);
    const draws = random();
    const n = 20_000;
    const p = 1 / (1 + Math.exp(-0.5));
    let first = 0;
    for (let i = 0; i < n; i++) first += Number(annotator.compare("3", "2", draws).preferred === 0);
    expect({ seed, off: Math.abs(first / n - p) < 5 * Math.sqrt((p * (1 - p)) / n) }).toEqual({ seed, off: true });
    expect(annotator.probability("3", "2") + annotator.probability("2", "3")).toBeCloseTo(1, 15);
    expect(annotator.probability("1e4", "-1e4")).toBe(1);
    expect(annotator.probability("-1e4", "1e4")).toBe(0);
  });

  // The rarest share is drawn with probability 0.43^5, hence is missing from 3,000 with probability e^-42.
  test("gives the share of several votes, and the majority is preferred", () => {
    const annotator = new Annotator(1, 5, score);
    const draws = random();
    const shares = new Set<number>();
    for (let i = 0; i < 3_000; i++) {
      const { agreement, preferred, margin } = annotator.compare("0.3", "0", draws);
      shares.add(agreement);
      expect(preferred).toBe(agreement > 0.5 ? 0 : 1);
      expect(margin).toBe(preferred === 0 ? 0.3 : -0.3);
    }
    expect(shares).toEqual(new Set([0, 0.2, 0.4, 0.6, 0.8, 1]));
  });

  test("refuses a temperature below 0 and no annotators", () => {
    for (const wrong of [-1, Number.NaN, Infinity])
      expect(() => new Annotator(wrong)).toThrow(expect.objectContaining({ code: "RANGE" }));
    expect(() => new Annotator(1, 0)).toThrow(expect.objectContaining({ code: "RANGE" }));
  });
});

describe("labels", () => {
  const annotator = new Annotator(0, 1, Number);

  test("compare two by two, leave out what tells nothing, and agreement is that with the chosen", () => {
    const rows = label(
      [{ prompt: "p", completions: ["1", "2", "5", "4", "7", "7", "", "3", "9"] }],
      annotator,
      random(),
      { pairs: "disjoint", margins: true },
    );
    expect(rows).toEqual([
      { prompt: "p", chosen: "2", rejected: "1", agreement: 1, margin: 1 },
      { prompt: "p", chosen: "5", rejected: "4", agreement: 1, margin: 1 },
    ]);
    const noisy = label(
      Array.from({ length: 200 }, () => ({ prompt: "p", completions: ["0", "0.5"] })),
      new Annotator(1, 4, Number),
      random(),
    );
    expect(noisy.every(({ agreement }) => agreement! >= 0.5)).toBe(true);
    expect(noisy.some(({ chosen }) => chosen === "0") && noisy.some(({ chosen }) => chosen === "0.5")).toBe(true);
    expect(noisy.every((row) => !("margin" in row))).toBe(true);
  });

  test("of a prompt depend on its place alone", () => {
    const groups = Array.from({ length: 50 }, (_, i) => ({ prompt: `${i}`, completions: ["0", "0.1", "0.2", "0.3"] }));
    const noisy = new Annotator(1, 3, Number);
    const all = label(groups, noisy, random());
    const changed = label(
      groups.map((group, i) => (i === 10 ? { ...group, completions: ["8", "9"] } : group)),
      noisy,
      random(),
    );
    expect(changed.filter(({ prompt }) => prompt !== "10")).toEqual(all.filter(({ prompt }) => prompt !== "10"));
  });

  test("rank by wins", () => {
    expect(
      rank(
        [
          { prompt: "p", completions: ["1", "3", "2", "3", ""] },
          { prompt: "q", completions: ["1"] },
        ],
        annotator,
        random(),
      ),
    ).toEqual([{ prompt: "p", ranking: ["3", "2", "1"] }]);
  });
});
