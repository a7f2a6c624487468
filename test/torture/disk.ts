import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Random } from "../random.js";

// What a disk holds after a power loss: the calls of a process are replayed on a shadow that knows
// which of them were synced.

/** A call of the log that shim.c writes. */
export type Call =
  | { kind: "open"; counted: boolean; id: number; truncates: boolean; path: string }
  | { kind: "write"; id: number; at: number; bytes: Buffer }
  | { kind: "sync"; id: number }
  | { kind: "truncate"; id: number; length: number }
  | { kind: "rename"; path: string; to: string }
  | { kind: "unlink" | "mkdir" | "rmdir"; path: string }
  | { kind: "failed" };

const LINE_FEED = 10;

/** The calls of a log, as far as it goes. */
export function callsOf(log: Buffer): Call[] {
  const calls: Call[] = [];
  for (let at = 0, end = log.indexOf(LINE_FEED); end >= 0; end = log.indexOf(LINE_FEED, at)) {
    const line = log.toString("utf8", at, end);
    const letter = line[0];
    const [first, second, ...rest] = line.slice(2).split(" ");
    const path = line.slice(2);
    at = end + 1;
    if (letter === "O" || letter === "o")
      calls.push({
        kind: "open",
        counted: letter === "O",
        id: Number(first),
        truncates: second === "1",
        path: rest.join(" "),
      });
    else if (letter === "W") {
      const length = Number(rest[0]);
      calls.push({ kind: "write", id: Number(first), at: Number(second), bytes: log.subarray(at, at + length) });
      if (length > 0) at += length + 1;
    } else if (letter === "S") calls.push({ kind: "sync", id: Number(first) });
    else if (letter === "T") calls.push({ kind: "truncate", id: Number(first), length: Number(second) });
    else if (letter === "R") calls.push({ kind: "rename", path: path.split("\t")[0], to: path.split("\t")[1] });
    else if (letter === "U") calls.push({ kind: "unlink", path });
    else if (letter === "M") calls.push({ kind: "mkdir", path });
    else if (letter === "X") calls.push({ kind: "rmdir", path });
    else calls.push({ kind: "failed" });
  }
  return calls;
}

/** The calls that shim.c numbers, from 1. */
export const numbered = (calls: readonly Call[]): Call[] =>
  calls.filter((call) => call.kind !== "open" || call.counted);

/** What survives of calls that were not synced: none of them, those on names alone, or each by a throw of a coin. */
export type Loss = "all" | "contents" | "some";

interface File {
  content: Buffer;
  synced: Buffer;
  /** Changes since it was synced. */
  pending: ((content: Buffer) => Buffer)[];
}

interface Folder {
  names: Map<string, File | Folder>;
  synced: Map<string, File | Folder>;
  pending: ((names: Map<string, File | Folder>) => void)[];
}

const isFolder = (node: File | Folder | undefined): node is Folder => node !== undefined && "names" in node;
const folderOf = (names = new Map<string, File | Folder>()): Folder => ({ names, synced: new Map(names), pending: [] });
const fileOf = (content = Buffer.alloc(0)): File => ({ content, synced: content, pending: [] });

/** A folder, what of it is in memory alone, and what is on the disk. */
export class Disk {
  private readonly opened = new Map<number, File | Folder>();

  private constructor(private readonly top: Folder) {}

  /** What lies in the folder, all of it on the disk. */
  static async load(path: string): Promise<Disk> {
    return new Disk(await loaded(path));
  }

  private at(path: string): File | Folder | undefined {
    if (path === "") return this.top;
    return path
      .split("/")
      .reduce<File | Folder | undefined>((node, name) => (isFolder(node) ? node.names.get(name) : undefined), this.top);
  }

  private change(path: string, change: (names: Map<string, File | Folder>, name: string) => void): void {
    const [folder, name] = [path.includes("/") ? dirname(path) : "", path.slice(path.lastIndexOf("/") + 1)];
    const parent = this.at(folder);
    if (!isFolder(parent)) throw new Error(`${path} is in no folder of the log`);
    const apply = (names: Map<string, File | Folder>) => change(names, name);
    apply(parent.names);
    parent.pending.push(apply);
  }

  private edit(id: number, edit: (content: Buffer) => Buffer): void {
    const file = this.opened.get(id);
    if (!file || isFolder(file)) throw new Error(`${id} is no open file of the log`);
    file.content = edit(file.content);
    file.pending.push(edit);
  }

  /** Replays the calls of a process. */
  replay(calls: readonly Call[]): void {
    this.opened.clear();
    for (const call of calls) this.apply(call);
  }

  private apply(call: Call): void {
    if (call.kind === "open") {
      if (!this.at(call.path)) {
        if (!call.counted) throw new Error(`${call.path} is read, and in no folder of the log`);
        const made = fileOf();
        this.change(call.path, (names, name) => names.set(name, made));
      }
      this.opened.set(call.id, this.at(call.path)!);
      if (call.truncates) this.edit(call.id, () => Buffer.alloc(0));
    } else if (call.kind === "write") this.edit(call.id, (content) => written(content, call.at, call.bytes));
    else if (call.kind === "truncate") this.edit(call.id, (content) => resized(content, call.length));
    else if (call.kind === "sync") {
      const node = this.opened.get(call.id)!;
      if (isFolder(node)) node.synced = new Map(node.names);
      else node.synced = node.content;
      node.pending = [];
    } else if (call.kind === "mkdir") {
      const made = folderOf();
      this.change(call.path, (names, name) => names.set(name, made));
    } else if (call.kind === "unlink" || call.kind === "rmdir")
      this.change(call.path, (names, name) => names.delete(name));
    else if (call.kind === "rename") this.rename(call.path, call.to);
  }

  private rename(path: string, to: string): void {
    const moved = this.at(path)!;
    if (dirname(path) !== dirname(to)) throw new Error(`${path} is renamed into another folder`);
    const name = to.slice(to.lastIndexOf("/") + 1);
    this.change(path, (names, before) => {
      names.delete(before);
      names.set(name, moved);
    });
  }

  /** Writes what is left after a power loss over the folder. */
  async lose(path: string, loss: Loss, random: Random): Promise<void> {
    await rm(path, { recursive: true });
    await store(this.top, path, loss, random);
  }
}

const written = (content: Buffer, at: number, bytes: Buffer): Buffer => {
  const longer = resized(content, Math.max(content.length, at + bytes.length));
  bytes.copy(longer, at);
  return longer;
};

function resized(content: Buffer, length: number): Buffer {
  const other = Buffer.alloc(length);
  content.copy(other);
  return other;
}

async function loaded(path: string): Promise<Folder> {
  const names = new Map<string, File | Folder>();
  for (const entry of await readdir(path, { withFileTypes: true })) {
    const below = join(path, entry.name);
    names.set(entry.name, entry.isDirectory() ? await loaded(below) : fileOf(await readFile(below)));
  }
  return folderOf(names);
}

async function store(node: File | Folder, path: string, loss: Loss, random: Random): Promise<void> {
  const survives = () => loss === "some" && random.below(2) === 0;
  if (!isFolder(node))
    return writeFile(
      path,
      node.pending.filter(survives).reduce((content, edit) => edit(content), node.synced),
    );
  const names = new Map(loss === "contents" ? node.names : node.synced);
  if (loss === "some") for (const change of node.pending) if (survives()) change(names);
  await mkdir(path, { recursive: true });
  for (const [name, one] of names) await store(one, join(path, name), loss, random);
}
