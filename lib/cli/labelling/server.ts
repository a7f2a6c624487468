import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { Answer, Labelling } from "../../data/labelling.js";
import type { CodedError } from "../../device/errors.js";
import { root } from "../../device/native.js";

const LONGEST_BODY = 65536;

/** A refusal with its status. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export interface LabelServer {
  /** With the token: whoever knows it may label. */
  address: string;
  close(): Promise<void>;
}

/**
 * Serves the labelling page on the loopback interface. The address holds a random token; a request must also name this server
 * as its host (against DNS rebinding) and a post must come from its own page, so that no other page in the user's browser can label.
 * @param port 0 for any that is free
 */
export async function serveLabels(labelling: Labelling, port = 0): Promise<LabelServer> {
  const token = randomBytes(16).toString("hex");
  const page = await wholePage();
  let host = "";

  const routes: Record<string, (request: IncomingMessage) => Promise<object>> = {
    "POST next": async (request) => {
      const { annotator } = await body(request);
      return state(name(annotator));
    },
    "POST answer": async (request) => {
      const { annotator, task, ...answer } = await body(request);
      await labelling.answer(name(annotator), String(task), answer as unknown as Answer);
      return state(name(annotator));
    },
    "POST undo": async (request) => {
      const { annotator } = await body(request);
      await labelling.undo(name(annotator));
      return state(name(annotator));
    },
  };
  const state = (annotator: string) => ({
    criteria: labelling.criteria,
    shown: labelling.next(annotator) ?? null,
    progress: labelling.progress(annotator),
  });

  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    if (request.headers.host !== host) throw new Refusal(403, `the host is ${request.headers.host}, wanted ${host}`);
    const [, given = "", route = ""] = /^\/([^/?]*)\/([^?]*)/.exec(request.url ?? "") ?? [];
    if (!same(given, token)) throw new Refusal(404, "the address lacks its token: use the one that rlhf label printed");
    if (request.method === "GET" && route === "") return send(response, 200, "text/html; charset=utf-8", page.html, page.policy);
    const handler = Object.hasOwn(routes, `${request.method} ${route}`) ? routes[`${request.method} ${route}`] : undefined;
    if (!handler) throw new Refusal(404, `there is no ${request.method} ${route}`);
    if (request.headers.origin !== `http://${host}`) throw new Refusal(403, "labels are taken from this server's own page only");
    if (request.headers["content-type"] !== "application/json") throw new Refusal(415, "wanted application/json");
    send(response, 200, "application/json", JSON.stringify(await handler(request)));
  };

  const server = createServer((request, response) => {
    answer(request, response).catch((error: Error & Partial<CodedError>) => {
      const status = error instanceof Refusal ? error.status : error.code === "STALE" ? 409 : error.code === "ANSWER" ? 400 : 500;
      if (!response.headersSent) send(response, status, "application/json", JSON.stringify({ error: error.message }));
      request.resume();
    });
  });
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
  host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    address: `http://${host}/${token}/`,
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeIdleConnections();
      await closed; // what is being written is answered
    },
  };
}

/** The page in one piece, and the policy under which it may run nothing else and talk to nobody else. */
async function wholePage(): Promise<{ html: string; policy: string }> {
  const [html, css, js] = await Promise.all(["html", "css", "js"].map((kind) => readFile(join(root, `lib/cli/labelling/page/page.${kind}`), "utf8")));
  const whole = html.replace("/* page.css */", () => css).replace("/* page.js */", () => js);
  const hash = (tag: string) => {
    const [, text] = whole.match(new RegExp(`<${tag}>(.*)</${tag}>`, "s"))!;
    return `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  };
  const policy = [
    `default-src 'none'; style-src ${hash("style")}; script-src ${hash("script")}; connect-src 'self'; img-src data:`,
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  ];
  return { html: whole, policy: policy.join("; ") };
}

function send(response: ServerResponse, status: number, type: string, content: string, policy = "default-src 'none'"): void {
  response.writeHead(status, {
    "content-type": type,
    "content-length": Buffer.byteLength(content),
    "content-security-policy": policy,
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
  });
  response.end(content);
}

async function body(request: IncomingMessage): Promise<Record<string, unknown>> {
  const parts: Buffer[] = [];
  let length = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    if ((length += part.length) > LONGEST_BODY) throw new Refusal(413, `the body is longer than ${LONGEST_BODY} bytes`);
    parts.push(part);
  }
  try {
    const value: unknown = JSON.parse(Buffer.concat(parts).toString("utf8"));
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {
    // said below
  }
  throw new Refusal(400, "the body is no JSON object");
}

function name(annotator: unknown): string {
  if (typeof annotator !== "string" || !/^\S(.{0,38}\S)?$/u.test(annotator)) throw new Refusal(400, "annotator: wanted a name of 1 to 40 characters");
  return annotator;
}

const same = (a: string, b: string) => a.length === b.length && timingSafeEqual(Buffer.from(a, "latin1"), Buffer.from(b, "latin1"));
