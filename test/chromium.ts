import { spawn, type ChildProcess } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";

/** Where a Chromium is, if it is anywhere: RLHF_CHROMIUM, or on the path. */
export const chromium = [
  process.env.RLHF_CHROMIUM,
  ...(process.env.PATH ?? "")
    .split(":")
    .flatMap((folder) => ["chromium", "chromium-browser", "google-chrome"].map((name) => join(folder, name))),
].find((file) => file && existsSync(file));

const KEYS: Record<string, { key: string; code: string; windowsVirtualKeyCode: number; text?: string }> = {
  Enter: { key: "Enter", code: "Enter", windowsVirtualKeyCode: 13, text: "\r" },
  Tab: { key: "Tab", code: "Tab", windowsVirtualKeyCode: 9 },
  Escape: { key: "Escape", code: "Escape", windowsVirtualKeyCode: 27 },
  Backspace: { key: "Backspace", code: "Backspace", windowsVirtualKeyCode: 8 },
  ArrowDown: { key: "ArrowDown", code: "ArrowDown", windowsVirtualKeyCode: 40 },
};

/** A headless Chromium, driven over the DevTools protocol on pipes: JSON, each message ended by a zero byte. */
export class Browser {
  private id = 0;
  private readonly waiting = new Map<number, { resolve: (value: any) => void; reject: (error: Error) => void }>();
  /** What pages said on their consoles, and errors of theirs. */
  readonly complaints: string[] = [];

  private constructor(
    private readonly child: ChildProcess,
    private readonly profile: string,
  ) {
    let rest = Buffer.alloc(0);
    (child.stdio[4] as Readable).on("data", (chunk: Buffer) => {
      rest = Buffer.concat([rest, chunk]);
      for (let end = rest.indexOf(0); end >= 0; end = rest.indexOf(0)) {
        this.hear(JSON.parse(rest.subarray(0, end).toString("utf8")));
        rest = rest.subarray(end + 1);
      }
    });
    child.on("exit", () => {
      for (const { reject } of this.waiting.values()) reject(new Error("Chromium has ended"));
    });
  }

  static async open(): Promise<Browser> {
    const profile = await mkdtemp(join(tmpdir(), "rlhf-chromium-"));
    const flags = [
      "--headless=new",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--no-first-run",
      "--remote-debugging-pipe",
    ];
    const child = spawn(chromium!, [...flags, `--user-data-dir=${profile}`, "about:blank"], {
      stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
    });
    return new Browser(child, profile);
  }

  private hear({
    id,
    result,
    error,
    method,
    params,
  }: {
    id?: number;
    result?: unknown;
    error?: { message: string };
    method?: string;
    params?: any;
  }): void {
    if (id !== undefined) {
      const { resolve, reject } = this.waiting.get(id)!;
      this.waiting.delete(id);
      if (error) reject(new Error(error.message));
      else resolve(result);
    } else if (method === "Runtime.exceptionThrown")
      this.complaints.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    else if (method === "Log.entryAdded") this.complaints.push(params.entry.text);
  }

  send(method: string, params: object = {}, sessionId?: string): Promise<any> {
    const id = ++this.id;
    (this.child.stdio[3] as Writable).write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  async page(url: string): Promise<Page> {
    const { browserContextId } = await this.send("Target.createBrowserContext"); // storage of its own
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank", browserContextId });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(this, sessionId);
    for (const domain of ["Page", "Runtime", "Log"]) await page.send(`${domain}.enable`);
    await page.go(url);
    return page;
  }

  async close(): Promise<void> {
    const ended = new Promise((resolve) => this.child.once("exit", resolve));
    this.send("Browser.close").catch(() => undefined);
    await ended;
    await rm(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

export class Page {
  constructor(
    private readonly browser: Browser,
    private readonly session: string,
  ) {}

  send(method: string, params: object = {}): Promise<any> {
    return this.browser.send(method, params, this.session);
  }

  async go(url: string): Promise<void> {
    await this.send("Page.navigate", { url });
    await this.until("document.readyState === 'complete' && location.href !== 'about:blank'");
  }

  /** The value of an expression in the page. */
  async value<T = unknown>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", {
      expression,
      returnByValue: true,
      awaitPromise: true,
    });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until an expression is true in the page. */
  async until(expression: string): Promise<void> {
    const end = Date.now() + 20_000;
    while (!(await this.value<boolean>(expression).catch(() => false))) {
      if (Date.now() > end)
        throw new Error(
          `it does not become true: ${expression}; the page says: ${await this.value<string>("document.body.innerText")}`,
        );
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Presses keys one after the other: characters, or names such as Enter. */
  async press(...keys: string[]): Promise<void> {
    for (const name of keys) {
      const shift = /^[A-Z]$/.test(name);
      const code = name.toUpperCase().charCodeAt(0);
      const key = KEYS[name] ?? {
        key: name,
        code: /[a-z]/i.test(name) ? `Key${name.toUpperCase()}` : "",
        windowsVirtualKeyCode: code,
        text: name,
      };
      await this.send("Input.dispatchKeyEvent", { type: "keyDown", modifiers: shift ? 8 : 0, ...key });
      await this.send("Input.dispatchKeyEvent", { type: "keyUp", modifiers: shift ? 8 : 0, ...key, text: undefined });
    }
  }

  type(text: string): Promise<void> {
    return this.send("Input.insertText", { text });
  }

  async screen(width: number, height: number, { dark = false, mobile = false } = {}): Promise<void> {
    await this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: mobile ? 2 : 1, mobile });
    await this.send("Emulation.setTouchEmulationEnabled", { enabled: mobile });
    await this.send("Emulation.setEmulatedMedia", {
      features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }],
    });
  }

  async screenshot(): Promise<Buffer> {
    return Buffer.from((await this.send("Page.captureScreenshot", { format: "png" })).data as string, "base64");
  }
}
