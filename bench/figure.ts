import type { Result, Row } from "./result.js";

// A picture of a machine's results: for each row how many times faster it is than its fastest peer,
// and its share of the hardware limit.

const [NAME, SHAPE, LIMIT, FASTER, END] = [8, 146, 430, 590, 1090]; // left edges of the columns
const [ROW, TOP] = [17, 68];
const LETTER = 6.5; // width of a letter, about
const TICKS = [0.5, 1, 2, 4, 10, 30, 100, 300];

/** Text as SVG has it between tags. */
export const escape = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
const times = (ratio: number) => `${ratio >= 100 ? ratio.toFixed(0) : ratio.toPrecision(2)}x`;

/**
 * SVG, readable in light and in dark. It shows the rows that have a peer, at the machine's first
 * number of threads. Dots stand between 0.5 and 500 times faster.
 */
export function figure({ commit, cpu, isa, limits: [{ threads }], rows }: Result): string {
  const shown = rows.filter((row) => row.threads === threads && row.peers.length > 0);
  const bottom = TOP + ROW * shown.length;
  const x = (ratio: number) =>
    FASTER + ((END - 200 - FASTER) * Math.log(Math.min(Math.max(ratio, 0.5), 500) / 0.5)) / Math.log(1000);
  const width = (share: number) => Math.min(share, 1) * (FASTER - 60 - LIMIT);
  const text = (left: number, top: number, content: string, kind = "") =>
    `<text x="${left.toFixed(1)}" y="${top}"${kind}>${escape(content)}</text>`;
  const labelOf = ({ peers: [fastest] }: Row) => `${times(fastest.ratio)} ${fastest.name}`;
  /**
   * Where the dot stands that the label of the fastest peer follows: its own, or that of a ring
   * which the label would cover.
   */
  const labelled = (row: Row): number =>
    row.peers
      .map(({ ratio }) => x(ratio))
      .reduce((at, ring) => (ring < at + 18 + LETTER * labelOf(row).length ? ring : at));
  const line = (row: Row, i: number): string => {
    const middle = TOP + ROW * i + ROW / 2;
    const [fastest, ...others] = row.peers;
    const share = row.limitRatio ?? 0;
    return [
      row.name === shown[i - 1]?.name ? "" : text(NAME, middle + 4, row.name, ' class="name"'),
      text(SHAPE, middle + 4, row.shape.replace(/ \(([^,]*).*\)/, ": $1")),
      `<rect x="${LIMIT}" y="${middle - 4}" width="${width(1)}" height="8" class="all"/><rect x="${LIMIT}" y="${middle - 4}" width="${width(share).toFixed(1)}" height="8" class="share"/>`,
      text(LIMIT + width(1) + 6, middle + 4, `${(100 * share).toFixed(0)} %`),
      ...others.map(({ ratio }) => `<circle cx="${x(ratio).toFixed(1)}" cy="${middle}" r="3" class="other"/>`),
      `<circle cx="${x(fastest.ratio).toFixed(1)}" cy="${middle}" r="4" class="${fastest.ratio < 1 ? "slower" : "faster"}"/>`,
      text(labelled(row) + 9, middle + 4, labelOf(row)),
    ].join("");
  };
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${END} ${bottom + 8}" font-family="system-ui, sans-serif" font-size="12">
<style>
text { fill: #57606a } .name, .title { fill: #1f2328; font-weight: 600 } line { stroke: #d0d7de } .one { stroke: #57606a }
.all { fill: #eaeef2 } .share { fill: #8250df } .faster { fill: #1a7f37 } .slower { fill: #cf222e } .other { fill: none; stroke: #8c959f }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .name, .title { fill: #f0f6fc } line { stroke: #3d444d } .one { stroke: #9198a1 }
.all { fill: #2a313c } .share { fill: #a371f7 } .faster { fill: #3fb950 } .slower { fill: #f85149 } .other { stroke: #656c76 } }
</style>
${text(NAME, 16, `${cpu}, ${isa}, ${threads} threads${commit ? `, commit ${commit}` : ""}`, ' class="title"')}
${text(LIMIT, TOP - 30, "share of the limit", ' class="title"')}
${text(FASTER, TOP - 30, "times faster than the fastest peer (rings: other peers)", ' class="title"')}
${TICKS.map((tick) => `<line x1="${x(tick).toFixed(1)}" x2="${x(tick).toFixed(1)}" y1="${TOP - 4}" y2="${bottom}"${tick === 1 ? ' class="one"' : ""}/>${text(x(tick), TOP - 10, `${tick}x`, ' text-anchor="middle"')}`).join("\n")}
${shown.map(line).join("\n")}
</svg>
`;
}
