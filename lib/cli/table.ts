import { visible } from "../device/errors.js";

/** Rows in columns: text to the left, numbers to the right. */
export function table(titles: readonly string[], cells: readonly (readonly string[])[]): string {
  const [head, ...rows] = [titles, ...cells].map((row) => row.map((cell) => visible(cell)));
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i].length)));
  const numeric = head.map((_, i) => i > 0 && rows.every((row) => /^[-+\d.,:%x\u2013 e]*$/.test(row[i])));
  const line = (row: readonly string[]) =>
    row
      .map((cell, i) => (numeric[i] ? cell.padStart(widths[i]) : cell.padEnd(widths[i])))
      .join("  ")
      .trimEnd();
  return [line(head), widths.map((width) => "\u2500".repeat(width)).join("  "), ...rows.map(line)].join("\n");
}
