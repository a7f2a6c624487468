import { spawn, type ChildProcess } from "node:child_process";
import { join } from "node:path";
import { createInterface, type Interface } from "node:readline";
import { root } from "../lib/device/native.js";

/** torch, driven line by line: one process prepares the same work and times it when asked. */
export class Peer {
  private readonly answers: ((line: string) => void)[] = [];

  private constructor(
    private readonly child: ChildProcess,
    private readonly lines: Interface,
  ) {
    lines.on("line", (line) => this.answers.shift()?.(line));
    child.on("exit", () => this.answers.splice(0).forEach((answer) => answer("none peer has ended")));
  }

  /** The peer of `RLHF_PEER_PYTHON`, if that is set and has torch. */
  static async open(threads: number): Promise<Peer | undefined> {
    const python = process.env.RLHF_PEER_PYTHON;
    if (!python) return undefined;
    const child = spawn(python, [join(root, "bench/peers/torch_peer.py"), String(threads)], { stdio: ["pipe", "pipe", "inherit"] });
    const peer = new Peer(child, createInterface({ input: child.stdout }));
    const hello = await peer.ask("hello");
    if (hello.startsWith("torch")) return peer;
    console.error(`RLHF_PEER_PYTHON: ${hello}`);
    return undefined;
  }

  private ask(line: string): Promise<string> {
    return new Promise((resolve) => {
      this.answers.push(resolve);
      this.child.stdin!.write(`${line}\n`);
    });
  }

  /** Prepares the work of a row; the name of the implementation, or nothing if the peer has none. */
  async prepare(name: string, shape: string): Promise<string | undefined> {
    const [state, ...rest] = (await this.ask(`prepare ${JSON.stringify({ name, shape })}`)).split(" ");
    return state === "ready" ? rest.join(" ") : undefined;
  }

  run = async (runs: number): Promise<number> => {
    let ms = 0;
    for (let i = 0; i < runs; i++) ms += Number(await this.ask("run"));
    return ms;
  };

  /** Bytes that the process holds at most, since the row was prepared. */
  bytes = async (): Promise<number> => Number(await this.ask("bytes"));

  close(): void {
    this.child.stdin!.end();
    this.lines.close();
  }
}
