import { spawn, type ChildProcess } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "@jest/globals";
import { serveLabels, type LabelServer } from "../../lib/cli/labelling/server.js";
import { readRows } from "../../lib/data/jsonl.js";
import { LabelLog, labelEntry, type LabelEntry } from "../../lib/data/label_log.js";
import { Labelling, task, type Task } from "../../lib/data/labelling.js";
import { OVERALL } from "../../lib/data/votes.js";
import { root } from "../../lib/device/native.js";
import { Browser, chromium, type Page } from "../chromium.js";

// The labelling page in a real browser, its server under hostile requests, and the command itself.

let folder: string;
let log: string;
let labelling: Labelling;
let server: LabelServer | undefined;
const at = (name: string) => join(folder, name);

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-label-"));
  log = at("page.labels.jsonl");
});
afterEach(async () => {
  await server?.close();
  if (server) await labelling.close();
  server = undefined;
  await rm(log, { force: true });
});
afterAll(() => rm(folder, { recursive: true }));

const hostile = '<img src=x onerror="document.title=1">';
const pairs = (count: number): Task[] =>
  Array.from({ length: count }, (_, i) => task(`Prompt ${i}`, [`first ${i} ${hostile}`, `second ${i}`]));

async function serve(tasks: readonly Task[], { criteria = [OVERALL], twice = 0 } = {}): Promise<string> {
  labelling = new Labelling(tasks, await LabelLog.open(log), { criteria, twice, seed: 1 });
  server = await serveLabels(labelling);
  return server.address;
}
const entries = () => readRows(log, labelEntry);

describe("the server", () => {
  const post = (address: string, path: string, headers: Record<string, string>, body = "{}") =>
    new Promise<{ status: number; text: string; headers: NodeJS.Dict<string | string[]> }>((resolve, reject) => {
      const sent = request(new URL(path, address), { method: headers.method ?? "POST", headers }, (response) => {
        let text = "";
        response.on("data", (chunk: Buffer) => (text += chunk.toString()));
        response.on("end", () => resolve({ status: response.statusCode!, text, headers: response.headers }));
      });
      sent.on("error", reject).end(headers.method === "GET" ? undefined : body);
    });

  test("listens on the loopback interface, and its address holds a token of 128 bits, another each time", async () => {
    const first = await serve(pairs(1));
    expect(first).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/[0-9a-f]{32}\/$/);
    await server!.close();
    await labelling.close();
    expect((await serve(pairs(1))).slice(-33)).not.toBe(first.slice(-33));
  });

  test("takes labels from its own page alone", async () => {
    const address = await serve(pairs(1));
    const { origin, port } = new URL(address);
    const own = { origin, "content-type": "application/json" };
    const body = JSON.stringify({ annotator: "ana" });
    expect(await post(address, "next", own, body)).toMatchObject({
      status: 200,
      text: expect.stringContaining("Prompt 0"),
    });
    const refused: [number, string, Record<string, string>, string?][] = [
      [403, "next", { ...own, origin: "http://evil.example" }], // another site's page
      [403, "next", { ...own, origin: "null" }], // a sandboxed frame
      [403, "next", { "content-type": "application/json" }], // no page at all
      [403, "next", { ...own, host: `evil.example:${port}` }], // a name that was rebound to 127.0.0.1
      [403, "next", { ...own, host: `localhost:${port}` }],
      [415, "next", { ...own, "content-type": "text/plain" }], // what a form can send without asking
      [404, `/${"0".repeat(32)}/next`, own],
      [404, "/next", own],
      [404, "/", { method: "GET" }],
      [404, "../package.json", { method: "GET" }],
      [404, "constructor", own],
      [400, "next", own, "[1"],
      [400, "next", own, '{"annotator":""}'],
      [400, "next", own, JSON.stringify({ annotator: "a".repeat(41) })],
      [413, "next", own, JSON.stringify({ annotator: "a".repeat(100_000) })],
      [
        409,
        "answer",
        own,
        JSON.stringify({ annotator: "ana", turn: 0, task: "0".repeat(16), kind: "skip", seconds: 1 }),
      ],
    ];
    for (const [status, path, headers, text = body] of refused)
      expect([path, headers, (await post(address, path, headers, text)).status]).toEqual([path, headers, status]);
    expect(await entries()).toEqual([]);
  });

  test("refuses what is out of bounds by its field, and it changes nothing", async () => {
    const address = await serve([task("Prompt", ["x", "y"]), ...pairs(3)], { criteria: ["helpful", "constructor"] });
    const own = { origin: new URL(address).origin, "content-type": "application/json" };
    const ask = async (route: string, body: object | string) => {
      const { status, text } = await post(
        address,
        route,
        own,
        typeof body === "string" ? body : JSON.stringify({ annotator: "ana", ...body }),
      );
      return { status, ...(JSON.parse(text) as { error: string; turn: number; shown: { task: string } }) };
    };
    const { turn, shown } = await ask("next", {});
    const ranks = { helpful: [1, 2], constructor: [2, 1] };
    const good = { turn, task: shown.task, kind: "label", ranks, seconds: 1 };
    const text = JSON.stringify({ annotator: "ana", ...good });
    const deep = "[".repeat(20_000) + "]".repeat(20_000);
    const refused: [string, string, object | string][] = [
      ["annotator", "next", { annotator: 7 }],
      ["annotator", "next", { annotator: " ana" }],
      ["annotator", "next", { annotator: "a\u202eb" }],
      ["annotator", "next", { annotator: "a\u0000b" }],
      ["annotator", "next", { annotator: "a\u200bb" }],
      ["annotator", "next", '{"annotator":"a\\ud800"}'],
      ["more", "next", { more: 1 }],
      ["__proto__", "next", '{"annotator":"ana","__proto__":{"turn":1}}'],
      ["an object", "next", "[]"],
      ["an object", "next", "null"],
      ["JSON", "next", '{"annotator":"ana"'],
      ["JSON", "next", ""],
      ["turn", "answer", { ...good, turn: -1 }],
      ["turn", "answer", { ...good, turn: "0" }],
      ["turn", "answer", { ...good, turn: 2 ** 53 }],
      ["turn", "undo", {}],
      ["turn", "undo", { turn: 0.5 }],
      ["task", "answer", { ...good, task: "__proto__" }],
      ["task", "answer", { ...good, task: 1 }],
      ["kind", "answer", { ...good, kind: "undo" }],
      ["seconds", "answer", text.replace('"seconds":1', '"seconds":1e307')],
      ["seconds", "answer", text.replace('"seconds":1', '"seconds":1e999')],
      ["seconds", "answer", { ...good, seconds: null }],
      ["ranks.helpful", "answer", { ...good, ranks: { helpful: [1, 2, 2], constructor: [1, 2] } }],
      ["ranks.constructor", "answer", { ...good, ranks: { helpful: [1, 2] } }],
      ["ranks.helpful", "answer", text.replace("[1,2]", deep)],
      ['ranks has a field "__proto__"', "answer", text.replace('"ranks":{', '"ranks":{"__proto__":[1,2],')],
      ["strength.helpful", "answer", { ...good, strength: { helpful: "very" } }],
      ["strength", "answer", { ...good, strength: [] }],
      ["reason", "answer", { ...good, reason: "x".repeat(3000) }],
      ["shown", "answer", { ...good, shown: [0, 1] }],
    ];
    for (const [field, route, body] of refused) {
      const { status, error } = await ask(route, body);
      expect([field, status, error]).toEqual([field, 400, expect.stringContaining(field)]);
    }
    expect(await entries()).toEqual([]);
    expect(await ask("next", {})).toMatchObject({ status: 200, turn, shown });
    expect(await ask("answer", good)).toMatchObject({ status: 200, turn: turn + 1 });
    expect(await ask("answer", { ...good, seconds: 3 })).toMatchObject({ status: 200, turn: turn + 1 }); // its answer was lost on the way
    expect(await ask("answer", { ...good, kind: "skip", ranks: undefined })).toMatchObject({ status: 409 });
    for (let i = 0; i < 2; i++)
      expect(await ask("undo", { turn: turn + 1 })).toMatchObject({ status: 200, turn: turn + 2, shown });
    expect(await entries()).toMatchObject([{ kind: "label", seconds: 1 }, { kind: "undo" }]);
    await server!.close();
    await labelling.close();
    await serve(pairs(1)); // reads the log again
  });

  test("outlives hostile connections", async () => {
    const address = await serve(pairs(1));
    const { host, origin, port, pathname } = new URL(address);
    const say = (text: string | Buffer, ends = false) =>
      new Promise<string>((resolve) => {
        let heard = "";
        const socket = connect(Number(port), "127.0.0.1", () => void (ends ? socket.end(text) : socket.write(text)));
        socket.on("data", (chunk) => (heard += chunk.toString("latin1")));
        socket.on("error", () => undefined).on("close", () => resolve(heard));
      });
    const head = (path: string, ...more: string[]) =>
      [`POST ${pathname}${path} HTTP/1.1`, ...more, "connection: close"].join("\r\n") + "\r\n\r\n";
    const own = [`host: ${host}`, `origin: ${origin}`, "content-type: application/json"];
    const chunked = (body: Buffer) =>
      Buffer.concat([Buffer.from(`${body.length.toString(16)}\r\n`), body, Buffer.from("\r\n0\r\n\r\n")]);
    const refused: [number, string | Buffer][] = [
      [400, "\x16\x03\x01\x02\0\x01\0"],
      [400, `POST ${pathname}next HTTP/1.1\r\n\r\n`],
      [431, head("next", ...own, `x: ${"x".repeat(20_000)}`)],
      [403, head("next", ...own, "host: evil.example")],
      [403, head("next", "host: evil.example", ...own)],
      [403, head("next", ...own, "origin: http://evil.example", "content-length: 2") + "{}"],
      [400, head("next", ...own, "content-length: 2", "content-length: 3") + "{}"],
      [400, head("next", ...own, "content-length: 2", "transfer-encoding: chunked") + "{}"],
      [400, head("next", ...own, "content-length: -1")],
      [413, head("next", ...own, "content-length: 99999999999")],
      [
        413,
        Buffer.concat([
          Buffer.from(head("next", ...own, "transfer-encoding: chunked")),
          chunked(Buffer.alloc(70_000, " ")),
        ]),
      ],
      [
        400,
        Buffer.concat([
          Buffer.from(head("next", ...own, "content-length: 17")),
          Buffer.from('{"annotator":"\xff"}', "latin1"),
        ]),
      ],
      [404, head("../next", ...own)],
      [404, `GET http://evil.example/ HTTP/1.1\r\nhost: ${host}\r\nconnection: close\r\n\r\n`],
      ...["PUT", "DELETE", "OPTIONS", "HEAD", "GET"].map((method): [number, string] => [
        404,
        head("next", ...own).replace("POST", method),
      ]),
      [404, head("", ...own)],
    ];
    for (const [status, text] of refused)
      expect([text.toString("latin1").slice(0, 200), Number(/^HTTP\/1\.1 (\d+)/.exec(await say(text))?.[1])]).toEqual([
        text.toString("latin1").slice(0, 200),
        status,
      ]);
    const endless = say(
      Buffer.concat([
        Buffer.from(head("next", ...own, "transfer-encoding: chunked")),
        chunked(Buffer.alloc(3_000_000, " ")),
      ]),
    );
    expect(await endless).toMatch(/^(HTTP\/1\.1 413 [^]*)?$/); // it may be closed before all was sent
    const cut = say(head("next", ...own, "content-length: 100") + "{", true);
    const silent = [say(""), say(head("next", ...own, "content-length: 100") + "{")];
    const chunkedWell = Buffer.concat([
      Buffer.from(head("next", ...own, "transfer-encoding: chunked")),
      chunked(Buffer.from('{"annotator":"ana"}')),
    ]);
    expect(await say(chunkedWell)).toMatch(/^HTTP\/1\.1 200 /);
    await cut;
    const start = performance.now();
    await server!.close();
    await Promise.all(silent);
    expect(performance.now() - start).toBeLessThan(1500);
    expect(await entries()).toEqual([]);
  });

  test("at its end answers what is on its way to the disk", async () => {
    const address = await serve(pairs(30));
    const own = { origin: new URL(address).origin, "content-type": "application/json" };
    const ask = (route: string, body: object) => post(address, route, own, JSON.stringify(body));
    const begun = Array.from({ length: 20 }, (_, i) => `n${i}`);
    const shown = await Promise.all(
      begun.map(
        async (annotator) =>
          JSON.parse((await ask("next", { annotator })).text) as { turn: number; shown: { task: string } },
      ),
    );
    const answers = begun.map((annotator, i) =>
      ask("answer", { annotator, turn: shown[i].turn, task: shown[i].shown.task, kind: "skip", seconds: 1 }).then(
        ({ status }) => [annotator, status] as const,
        () => [annotator, 0] as const,
      ),
    );
    await Promise.race(answers);
    await server!.close();
    const told = (await Promise.all(answers)).filter(([, status]) => status === 200).map(([annotator]) => annotator);
    expect(told.length).toBeGreaterThan(0);
    expect((await entries()).map(({ annotator }) => annotator).toSorted()).toEqual(
      expect.arrayContaining(told.toSorted()),
    );
  });

  test("sends a page in one piece that may load nothing and be framed by nobody", async () => {
    const address = await serve(pairs(1));
    const { text, headers } = await post(address, "", { method: "GET" });
    expect(text).not.toMatch(/(src|href)="(?!data:,)/);
    expect(headers["content-security-policy"]).toMatch(
      /default-src 'none'.*connect-src 'self'.*frame-ancestors 'none'/,
    );
    expect(headers).toMatchObject({
      "cache-control": "no-store",
      "referrer-policy": "no-referrer",
      "x-content-type-options": "nosniff",
    });
    expect(headers).toMatchObject({
      "cross-origin-opener-policy": "same-origin",
      "cross-origin-resource-policy": "same-origin",
    });
  });
});

const withBrowser = chromium ? describe : describe.skip;
if (!chromium)
  console.warn("skipped: the labelling page in a browser, for no Chromium was found (RLHF_CHROMIUM names one)");

withBrowser("the page in Chromium", () => {
  let browser: Browser;
  let page: Page;
  beforeAll(async () => {
    browser = await Browser.open();
  });
  afterEach(() => expect(browser.complaints.splice(0)).toEqual([]));
  afterAll(() => browser.close());

  const count = (value: number) =>
    page.until(`document.querySelector("progress").value === ${value} && document.body.ariaBusy === "false"`);
  const text = (selector: string) =>
    page.value<string>(`document.querySelector(${JSON.stringify(selector)}).innerText`);
  const cards = () =>
    page.value<string[]>(`[...document.querySelectorAll(".card .text")].map((card) => card.innerText)`);
  async function begin(address: string, annotator = "ana"): Promise<Page> {
    page = await browser.page(address);
    await page.until(`document.activeElement.id === "name"`);
    await page.type(annotator);
    await page.press("Enter");
    await page.until(`!document.getElementById("task").hidden`);
    return page;
  }

  test("labels by keys alone: A, B, tie, strength, skip, flag, undo, a reason; each is in the log before the next pair shows", async () => {
    await begin(await serve(pairs(6)));
    const said: Partial<LabelEntry>[] = [];
    const ranked = async (side: number, more: object = {}) => {
      const first = (await cards())[0].startsWith("first");
      said.push({
        kind: "label",
        ranks: { overall: side === 0 ? [1, 1] : (side === 1) === first ? [1, 2] : [2, 1] },
        ...more,
      });
    };
    await ranked(1, { strength: { overall: "slightly" } });
    await page.press("a");
    await count(1);
    expect(await entries()).toHaveLength(1);
    await ranked(2, { strength: { overall: "clearly" }, reason: "it is shorter" });
    await page.press("r");
    await page.type("it is shorter");
    await page.press("Escape", "B");
    await count(2);
    await ranked(0);
    await page.press("t");
    await count(3);
    const shown = await text("#prompt");
    await page.press("s");
    await page.until(
      `document.getElementById("prompt").innerText !== ${JSON.stringify(shown)} && document.body.ariaBusy === "false"`,
    );
    await page.press("u");
    await page.until(
      `document.getElementById("prompt").innerText === ${JSON.stringify(shown)} && document.body.ariaBusy === "false"`,
    );
    await page.press("x");
    await page.until(
      `document.getElementById("prompt").innerText !== ${JSON.stringify(shown)} && document.body.ariaBusy === "false"`,
    );
    said.push({ kind: "skip" }, { kind: "undo" }, { kind: "flag" });
    expect(await entries()).toMatchObject(said);
    for (const { annotator, seconds, shown: order, at: when } of await entries()) {
      expect([annotator, order.toSorted((a, b) => a - b), Number.isNaN(Date.parse(when))]).toEqual([
        "ana",
        [0, 1],
        false,
      ]);
      expect(seconds).toBeLessThan(20);
    }
    await page.press("a");
    await count(4);
    await page.press("a");
    await page.until(`!document.getElementById("done").hidden`);
    expect(labelling.preferences()).toHaveLength(5);
  });

  test("shows texts as texts", async () => {
    await begin(await serve(pairs(1)));
    expect((await cards()).toSorted()[0]).toBe(`first 0 ${hostile}`);
    expect(await page.value(`document.querySelectorAll("#task img").length`)).toBe(0);
  });

  test("several annotators at once see different pairs, agreement shows, and one stays where the other undoes", async () => {
    const address = await serve(pairs(4), { twice: 1 });
    const ana = await begin(address, "ana");
    const ben = await begin(address, "ben");
    for (let i = 0; i < 4; i++)
      for (const one of [ana, ben]) {
        page = one;
        await page.press(labelling.preferences().length % 2 ? "a" : "b");
        await page.until(
          `document.body.ariaBusy === "false" && document.getElementById("status").textContent.startsWith("Saved")`,
        );
        await page.value(`document.getElementById("status").textContent = ""`);
      }
    await page.until(`!document.getElementById("done").hidden`);
    expect(await text("#agreement")).toMatch(/^\u03b1 -?\d\.\d\d$/);
    expect(await entries()).toHaveLength(8);
    expect(new Set((await entries()).map(({ task: id, annotator }) => `${id} ${annotator}`)).size).toBe(8);
    await page.value(`document.getElementById("undo-done").click()`);
    await page.until(`!document.getElementById("task").hidden`);
    expect(labelling.progress("ana").mine).toBe(4);
  });

  test("ranks four completions, ties included, for two criteria", async () => {
    const texts = ["w", "x", "y", "z"];
    await begin(await serve([task("Prompt", texts)], { criteria: ["helpful", "harmless"] }));
    const order = await cards();
    await page.press("c", "a", "Backspace", "a", "=", "d", "b", "Enter");
    await page.until(`document.querySelector(".now").innerText.includes("harmless")`);
    await page.press("a", "b", "c", "d", "Enter");
    await page.until(`!document.getElementById("done").hidden`);
    const [{ ranks }] = await entries();
    const places = (ofShown: number[]) => texts.map((one) => ofShown[order.indexOf(one)]);
    expect(ranks).toEqual({ helpful: places([2, 4, 1, 2]), harmless: places([1, 2, 3, 4]) });
  });

  test("asks each criterion of a pair, and the arrow goes to another", async () => {
    await begin(await serve(pairs(1), { criteria: ["helpful", "harmless"] }));
    await page.press("ArrowDown", "t");
    expect(await text(".now legend")).toBe("Which is more helpful?");
    expect(await entries()).toEqual([]);
    await page.press("a");
    await page.until(`!document.getElementById("done").hidden`);
    expect((await entries())[0]).toMatchObject({
      ranks: { harmless: [1, 1], helpful: expect.not.arrayContaining([3]) },
      strength: { helpful: "slightly" },
    });
  });

  test.each([
    ["light", false],
    ["dark", true],
  ])(
    "fits a phone of 320 pixels, %s: nothing is cut, targets are large, contrast is 4.5 or more, names are given",
    async (_, dark) => {
      await begin(
        await serve([
          task("A prompt of some words", [`${"word ".repeat(60)}${"x".repeat(120)}`, "short", "c"]),
          ...pairs(2),
        ]),
      );
      for (const _ of ["a ranking", "a pair"]) {
        await page.screen(320, 640, { dark, mobile: true });
        await page.value(
          `document.getElementById("agreement").textContent = "helpful \u03b1 0.52  harmless \u03b1 -0.81"`,
        ); // at its longest
        await page.value(`document.getElementById("counts").textContent = "12345 of 23456"`);
        expect(await page.value("document.documentElement.scrollWidth")).toBe(320);
        const buttons = await page.value<
          { name: string; width: number; height: number; left: number; right: number }[]
        >(
          `[...document.querySelectorAll("button")].filter((one) => one.offsetParent).map((one) => ({ name: one.ariaLabel || one.innerText, width: one.offsetWidth, height: one.offsetHeight, left: one.getBoundingClientRect().left, right: one.getBoundingClientRect().right }))`,
        );
        for (const { name, width, height, left, right } of buttons)
          expect([name, name !== "", width >= 24, height >= 40, left >= 0, right <= 320]).toEqual([
            name,
            true,
            true,
            true,
            true,
            true,
          ]);
        expect(await page.value<[string, number][]>(`(${contrasts.toString()})()`)).toEqual([]);
        await page.press("s");
        await page.until(`document.body.ariaBusy === "false"`);
      }
    },
  );

  test("shows the end of a prompt that is longer than its place, which the completions answer", async () => {
    await begin(await serve([task(`${"A turn.\n\n".repeat(99)}The last turn.`, ["a", "b"])]));
    const [top, seen, whole] = await page.value<number[]>(
      `(({ scrollTop, clientHeight, scrollHeight }) => [scrollTop, clientHeight, scrollHeight])(document.getElementById("prompt"))`,
    );
    expect(seen).toBeLessThan(whole / 2);
    expect(top + seen).toBeGreaterThan(whole - 2);
  });

  test("says so when the server is gone, and keeps what was not saved on the screen", async () => {
    await begin(await serve(pairs(2)));
    await server!.close();
    await page.press("a");
    await page.until(`!document.getElementById("error").hidden`);
    expect(await text("#error")).toContain("not saved");
    expect(await cards()).toHaveLength(2);
    expect(browser.complaints.splice(0)).toEqual([expect.stringContaining("Failed to load resource")]);
    server = undefined;
    await labelling.close();
    expect(await entries()).toEqual([]);
  });
});

/**
 * Runs in the page: the texts whose contrast to what is behind them is below 4.5 (WCAG 2.2, 1.4.3);
 * disabled ones are exempt.
 */
function contrasts(): [string, number][] {
  const page = globalThis as any;
  const canvas = page.document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = (colour: string): number[] => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data] as number[];
  };
  const luminance = (rgb: number[]) => {
    const [r, g, b] = rgb.map((byte) => (byte <= 10 ? byte / 255 / 12.92 : ((byte / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low: [string, number][] = [];
  for (const element of page.document.querySelectorAll("*")) {
    const words = [...element.childNodes].filter((node: any) => node.nodeType === 3 && node.data.trim());
    if (words.length === 0 || !element.offsetParent || element.closest("[disabled], script, style")) continue;
    let behind = element;
    while (behind && pixel(page.getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const [a, b] = [page.getComputedStyle(element).color, page.getComputedStyle(behind).backgroundColor].map(
      (colour: string) => luminance(pixel(colour)),
    );
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([words[0].data, ratio]);
  }
  return low;
}

describe("rlhf label", () => {
  const children: ChildProcess[] = [];
  const start = (...args: string[]) => {
    const child = spawn(process.execPath, [
      join(root, "dist/lib/cli/main.js"),
      "label",
      "--data",
      at("c.jsonl"),
      "--out",
      at("p.jsonl"),
      ...args,
    ]);
    children.push(child);
    return child;
  };
  afterEach(() => {
    for (const child of children.splice(0)) child.kill("SIGKILL"); // those of a test that failed
  });
  const heard = (stream: NodeJS.ReadableStream) => {
    const all = { text: "" };
    stream.on("data", (chunk: Buffer) => (all.text += chunk.toString()));
    return all;
  };
  beforeAll(() =>
    writeFile(
      at("c.jsonl"),
      ["one", "two", "three"]
        .flatMap((word) => [1, 2].map((i) => JSON.stringify({ prompt: word, completion: ` ${word}\u001b[2J ${i}` })))
        .join("\n"),
    ),
  );
  afterEach(() => Promise.all(["p.jsonl", "p.labels.jsonl"].map((name) => rm(at(name), { force: true }))));

  test("--tty goes by keys, and what it writes is what the reward stage reads", async () => {
    const child = start("--tty", "--annotator", "ana", "--set", "label.twice=0");
    const [out, errors] = [heard(child.stdout), heard(child.stderr)];
    child.stdin.end("srbecause\rAutB");
    const code = await new Promise((resolve) => child.on("close", resolve));
    expect([code, errors.text]).toEqual([0, ""]);
    expect(out.text).toContain("Nothing left to compare");
    expect(out.text).toContain("one\\u001b[2J 1"); // a completion commands no terminal
    expect(out.text).not.toContain("\u001b");
    expect(out.text).toContain("\ntie\n");
    expect(
      (await readRows(at("p.labels.jsonl"), labelEntry)).map(({ kind, reason, strength }) => [
        kind,
        reason,
        strength?.overall,
      ]),
    ).toEqual([
      ["skip", undefined, undefined],
      ["label", "because", "clearly"],
      ["undo", undefined, undefined],
      ["label", undefined, undefined],
      ["label", undefined, "clearly"],
    ]);
    const rows = await readRows(at("p.jsonl"), ({ value }) => value);
    expect(rows.map(({ agreement }) => Number(agreement)).toSorted((a, b) => a - b)).toEqual([0.5, 1]);
  });

  test("--tty ranks, ties included, and takes a letter back at a time", async () => {
    await writeFile(
      at("ranked.jsonl"),
      ["x", "y", "z"].map((completion) => JSON.stringify({ prompt: "p", completion })).join("\n"),
    );
    const child = start("--tty", "--data", at("ranked.jsonl"), "--set", "label.size=3");
    const errors = heard(child.stderr);
    child.stdin.end("a=b\u007fc=b\r");
    const code = await new Promise((resolve) => child.on("close", resolve));
    expect([code, errors.text]).toEqual([0, ""]);
    const [{ ranks, shown }] = await readRows(at("p.labels.jsonl"), labelEntry);
    expect(shown.map((place) => ranks!.overall[place])).toEqual([1, 2, 2]);
  });

  test("--ui, killed and started again, goes on from the last label; Ctrl-C writes the preferences", async () => {
    for (const round of [0, 1]) {
      const child = start("--ui", "--set", "label.twice=0");
      const out = heard(child.stdout);
      const ended = new Promise((resolve) => child.on("close", resolve));
      while (!/http:\S+/.test(out.text)) await new Promise((resolve) => setTimeout(resolve, 20));
      const [address] = out.text.match(/http:\S+/)!;
      const post = async (route: string, body: object) =>
        (await fetch(new URL(route, address), {
          method: "POST",
          headers: { "content-type": "application/json", origin: new URL(address).origin },
          body: JSON.stringify({ annotator: "ana", ...body }),
        }).then((response) => response.json())) as {
          turn: number;
          shown: { task: string };
          progress: { mine: number };
        };
      const { turn, shown, progress } = await post("next", {});
      expect(progress.mine).toBe(round);
      await post("answer", { turn, task: shown.task, kind: "label", ranks: { overall: [1, 2] }, seconds: 1 });
      child.kill(round === 0 ? "SIGKILL" : "SIGINT");
      await ended;
      expect((await readFile(at("p.labels.jsonl"), "utf8")).split("\n").length - 1).toBe(round + 1);
    }
    expect(await readRows(at("p.jsonl"), ({ value }) => value.annotators)).toEqual([1, 1]);
  });

  const listening = async (out: { text: string }) => {
    while (!/http:\S+/.test(out.text)) await new Promise((resolve) => setTimeout(resolve, 20));
    return new URL(out.text.match(/http:\S+/)![0]);
  };
  /** A log of one label, as a server that was killed leaves it. */
  async function oneLabel(): Promise<void> {
    const child = start("--tty", "--set", "label.twice=0");
    child.stdin.end("aq");
    await new Promise((resolve) => child.on("close", resolve));
    expect(await entriesOf()).toHaveLength(1);
    await rm(at("p.jsonl"));
  }
  const entriesOf = () => readRows(at("p.labels.jsonl"), labelEntry);

  test.each([
    ["once", ["SIGINT"]],
    ["twice", ["SIGINT", "SIGTERM"]],
    ["by a terminal that closes", ["SIGHUP"]],
  ] as const)(
    "--ui, asked to end %s, ends at once beside silent connections and writes the preferences",
    async (_, signals) => {
      await oneLabel();
      const child = start("--ui", "--set", "label.twice=0");
      const [out, errors] = [heard(child.stdout), heard(child.stderr)];
      const ended = new Promise((resolve) => child.on("close", resolve));
      const { port } = await listening(out);
      await rm(at("p.jsonl"));
      const silent = Array.from({ length: 3 }, () => connect(Number(port), "127.0.0.1").on("error", () => undefined));
      await Promise.all(silent.map((socket) => new Promise((resolve) => socket.once("connect", resolve))));
      silent[0].write("POST / HTTP/1.1\r\nhost:");
      const begun = performance.now();
      for (const signal of signals) child.kill(signal);
      expect(await ended).toBe(0);
      expect(performance.now() - begun).toBeLessThan(4000);
      expect(await readRows(at("p.jsonl"), ({ value }) => value.annotators)).toEqual([1]);
      if (signals.length > 1) expect(errors.text).toContain("the next start writes it too");
    },
  );

  test("--ui, killed before it wrote the preferences, writes them at its next start", async () => {
    await oneLabel();
    const child = start("--ui", "--set", "label.twice=0");
    await listening(heard(child.stdout));
    expect(await readRows(at("p.jsonl"), ({ value }) => value.annotators)).toEqual([1]);
    const ended = new Promise((resolve) => child.on("close", resolve));
    child.kill("SIGKILL");
    await ended;
  });

  test("--tty, asked to end, writes the preferences", async () => {
    await oneLabel();
    const child = start("--tty", "--set", "label.twice=0");
    const out = heard(child.stdout);
    const ended = new Promise((resolve) => child.on("close", resolve));
    while (!out.text.includes("slightly better")) await new Promise((resolve) => setTimeout(resolve, 20));
    await rm(at("p.jsonl"));
    child.kill("SIGTERM");
    expect(await ended).toBe(0);
    expect(await readRows(at("p.jsonl"), ({ value }) => value.annotators)).toEqual([1]);
  });
});
