import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { ANSWER_FIELDS, annotatorName, fieldsOf, taskName, wholeNumber, type Answer } from "../../data/answers.js";
import type { Labelling } from "../../data/labelling.js";
import { shown, type CodedError } from "../../device/errors.js";
import { root } from "../../device/native.js";

/** What is given to a browser on this machine that works, and to no other one. */
const LIMITS = {
  headersTimeout: 10_000,
  requestTimeout: 20_000,
  keepAliveTimeout: 5000,
  connectionsCheckingInterval: 2000,
  maxHeaderSize: 16384,
};
const MOST_CONNECTIONS = 256;
const LONGEST_BODY = 65536;
const LONGEST_WAIT = 2000; // ms, at the end, for answers on their way to the disk

const STATUS: Record<string, number> = { ANSWER: 400, STALE: 409, LIMIT: 429, FILE: 507 };

/** A refusal with its status. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** What the page asks for: the fields beside the annotator, and what is done. */
type Routes = Record<
  string,
  { fields: string[]; act(annotator: string, given: Record<string, unknown>): Promise<unknown> }
>;

const routesOf = (labelling: Labelling): Routes => ({
  next: { fields: [], act: () => Promise.resolve() },
  answer: {
    fields: ["turn", "task", ...ANSWER_FIELDS],
    act: (annotator, { turn, task, ...answer }) =>
      labelling.answer(annotator, taskName(task), answer as unknown as Answer, wholeNumber("turn", turn, 0)),
  },
  undo: { fields: ["turn"], act: (annotator, { turn }) => labelling.undo(annotator, wholeNumber("turn", turn, 0)) },
});

export interface LabelServer {
  /** With the token: whoever knows it may label. */
  address: string;
  /**
   * Takes no more requests, waits for a moment until those that change something are answered, and
   * ends every connection.
   */
  close(): Promise<void>;
}

/**
 * Serves the labelling page on the loopback interface. The address holds a random token; a request
 * must also name this server as its host (against DNS rebinding) and a post must come from its own
 * page, so that no other page in the user's browser can label.
 * @param port 0 for any that is free
 */
export async function serveLabels(labelling: Labelling, port = 0): Promise<LabelServer> {
  const token = randomBytes(16).toString("hex");
  const page = await wholePage();
  const working = new Set<Promise<unknown>>(); // requests that may change something
  const routes = routesOf(labelling);
  let host = "";
  let isClosing = false;

  const handle = async (route: string, asked: unknown) => {
    const { annotator, ...given } = fieldsOf("the body", asked, ["annotator", ...routes[route].fields]);
    const name = annotatorName(annotator);
    await routes[route].act(name, given);
    return { criteria: labelling.criteria, ...(await labelling.view(name)) };
  };

  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    if (request.headersDistinct.host?.length !== 1 || request.headers.host !== host)
      throw new Refusal(403, `the host is ${shown(request.headersDistinct.host)}, wanted one, ${host}`);
    const [, given = "", route = ""] = /^\/([^/?]*)\/([^?]*)/.exec(request.url ?? "") ?? [];
    if (!same(given, token)) throw new Refusal(404, "the address lacks its token: use the one that rlhf label printed");
    if (request.method === "GET" && route === "")
      return send(response, 200, "text/html; charset=utf-8", page.html, page.policy);
    if (request.method !== "POST" || !Object.hasOwn(routes, route))
      throw new Refusal(404, `there is no ${request.method} ${shown(route)}`);
    if (request.headers.origin !== `http://${host}`)
      throw new Refusal(403, "labels are taken from this server's own page only");
    if (request.headers["content-type"] !== "application/json") throw new Refusal(415, "wanted application/json");
    const asked = await body(request);
    if (isClosing) throw new Refusal(503, "the server is ending, and this is not saved");
    const work = handle(route, asked).then((state) => send(response, 200, "application/json", JSON.stringify(state)));
    const done = work.catch(() => undefined).finally(() => working.delete(done));
    working.add(done);
    await work;
  };

  const server = createServer(LIMITS, (request, response) => {
    answer(request, response).catch((error: Error & Partial<CodedError>) => {
      const status = error instanceof Refusal ? error.status : (STATUS[error.code ?? ""] ?? 500);
      if (!response.headersSent) send(response, status, "application/json", JSON.stringify({ error: error.message }));
      request.resume();
    });
  });
  server.maxConnections = MOST_CONNECTIONS;
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
  host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    address: `http://${host}/${token}/`,
    async close() {
      isClosing = true;
      const closed = new Promise((resolve) => server.close(resolve));
      const waiting = new AbortController();
      await Promise.race([
        Promise.all(working),
        setTimeout(LONGEST_WAIT, undefined, { signal: waiting.signal }).catch(() => undefined),
      ]);
      waiting.abort();
      await new Promise((resolve) => setImmediate(resolve)); // what was sent goes out
      server.closeAllConnections();
      await closed;
    },
  };
}

/**
 * The page in one piece, and the policy under which it may run nothing else and talk to nobody
 * else.
 */
async function wholePage(): Promise<{ html: string; policy: string }> {
  const [html, css, js] = await Promise.all(
    ["html", "css", "js"].map((kind) => readFile(join(root, `lib/cli/labelling/page/page.${kind}`), "utf8")),
  );
  const whole = html.replace("/* page.css */", () => css).replace("/* page.js */", () => js);
  const hash = (tag: string) => {
    const [, text] = whole.match(new RegExp(`<${tag}>(.*)</${tag}>`, "s"))!;
    return `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  };
  const policy = [
    `default-src 'none'; style-src ${hash("style")}; script-src ${hash("script")}; connect-src 'self'; img-src data:`,
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
  ];
  return { html: whole, policy: policy.join("; ") };
}

function send(
  response: ServerResponse,
  status: number,
  type: string,
  content: string,
  policy = "default-src 'none'; frame-ancestors 'none'",
): void {
  response.writeHead(status, {
    "content-type": type,
    "content-length": Buffer.byteLength(content),
    "content-security-policy": policy,
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    ...(status === 413 ? { connection: "close" } : {}),
  });
  response.end(content);
}

/** What is longer is not kept; of what is much longer the rest is not waited for either. */
async function body(request: IncomingMessage): Promise<unknown> {
  const parts: Buffer[] = [];
  let length = Number(request.headers["content-length"] ?? 0) > 16 * LONGEST_BODY ? Infinity : 0;
  if (length < Infinity)
    for await (const part of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      if ((length += part.length) <= LONGEST_BODY) parts.push(part);
      if (length > 16 * LONGEST_BODY) break;
    }
  if (length > LONGEST_BODY) throw new Refusal(413, `the body is longer than ${LONGEST_BODY} bytes`);
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(parts)));
  } catch (error) {
    throw new Refusal(400, `the body is not JSON: ${(error as Error).message}`);
  }
}

const same = (a: string, b: string) =>
  a.length === b.length && timingSafeEqual(Buffer.from(a, "latin1"), Buffer.from(b, "latin1"));
