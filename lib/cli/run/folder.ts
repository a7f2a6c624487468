import { createHash } from "node:crypto";
import { lstat, readdir, readFile, rm, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Lock } from "../../files/lock.js";
import { typeError } from "../../device/errors.js";
import { makeFolder, sweep, syncFolder, writeFileDurably, writing } from "../../files/durable.js";
import { warn } from "../terminal.js";

const LOCK = ".lock";
/** The file that names what commands made in a folder. It ends with a checksum of itself. */
export const MARKER = ".rlhf";
const FIRST_LINE =
  "rlhf made what is named below, and replaces and removes it. The rest of this folder is not its own.";

function markerText(names: Iterable<string>): string {
  const lines = [FIRST_LINE, ...names, ""].join("\n");
  return `${lines}${createHash("sha256").update(lines).digest("hex")}\n`;
}

/**
 * The names that the marker of a folder holds; undefined where there is none.
 * @throws TypeError `FOLDER` if it cannot be read, or is damaged
 */
export async function readMarker(folder: string): Promise<Set<string> | undefined> {
  const text = await markerIn(folder);
  if (text === undefined) return undefined;
  const names = text.split("\n").slice(1, -2);
  if (text !== markerText(names))
    throw typeError("FOLDER", `${join(folder, MARKER)} is damaged: its checksum is not that of its lines`);
  return new Set(names);
}

const markerIn = (folder: string) =>
  readFile(join(folder, MARKER), "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw typeError("FOLDER", `${join(folder, MARKER)} cannot be read: ${error.message}`);
  });

/**
 * Whether a damaged marker was one: most of its first line stands, or nothing but zeros, or it was
 * emptied.
 */
function wasMarker(text: string): boolean {
  if (/^\0*$/.test(text)) return true;
  const same = Array.from(FIRST_LINE).filter((character, i) => text[i] === character).length;
  return same > FIRST_LINE.length / 2;
}

/**
 * A folder that a command writes to, one command at a time. What lies in it and was not made by
 * such a command stays as it is.
 */
export class Folder {
  private own = new Set<string>();

  private constructor(
    readonly path: string,
    private readonly lock: Lock,
  ) {}

  /**
   * Makes the folder, or takes up one that is there. The names are kept in its marker, durably,
   * before anything by one of them is written.
   * @param names what the command will write, replace or remove
   * @throws TypeError `FOLDER` if it cannot be written, or holds any of these and no command made
   *   it; `LOCKED` if another process has it
   */
  static async open(path: string, names: readonly string[]): Promise<Folder> {
    let lock: Lock;
    try {
      await makeFolder(path);
      lock = new Lock(join(path, LOCK), "one command in a folder at a time");
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      throw code === "LOCKED"
        ? error
        : typeError("FOLDER", code === "WRITE" ? message : `${path} cannot be written: ${message}`);
    }
    const folder = new Folder(path, lock);
    try {
      await folder.begin(names);
      return folder;
    } catch (error) {
      lock[Symbol.dispose]();
      throw error;
    }
  }

  private async begin(names: readonly string[]): Promise<void> {
    this.own = await this.marked(names);
    const taken: string[] = [];
    for (const name of names) if (!this.own.has(name) && (await isTaken(join(this.path, name)))) taken.push(name);
    if (taken.length > 0)
      throw typeError(
        "FOLDER",
        `${this.path} holds ${taken.join(", ")}, which rlhf did not make and would replace: move it, or choose another folder`,
      );
    await this.claim(...names);
    for (const folder of [this.path, ...[...this.own].map((name) => join(this.path, name))]) await sweep(folder);
  }

  /**
   * What the marker names. A damaged one is told of, and written anew with the names of this
   * command.
   */
  private async marked(names: readonly string[]): Promise<Set<string>> {
    try {
      return (await readMarker(this.path)) ?? new Set();
    } catch (error) {
      const file = join(this.path, MARKER);
      if (!wasMarker((await markerIn(this.path)) ?? ""))
        throw typeError(
          "FOLDER",
          `${file} is not what rlhf writes: empty it if a run made this folder, else move it or choose another folder`,
        );
      warn(`${(error as Error).message}; it is written anew`);
      await writeFileDurably(file, markerText(names));
      return new Set(names);
    }
  }

  /** Whether such a command made what goes by this name, or will. */
  owns(name: string): boolean {
    return this.own.has(name);
  }

  /** Says durably that what goes by these names is ours. */
  async claim(...names: string[]): Promise<void> {
    const all = new Set([...this.own, ...names]);
    if (all.size > this.own.size) await writeFileDurably(join(this.path, MARKER), markerText(all));
    this.own = all;
  }

  /**
   * Removes what is ours, durably the first before the others, and the folder if nothing else is in
   * it.
   */
  async remove(...first: string[]): Promise<void> {
    const gone = async (...names: string[]) => {
      for (const name of names) await rm(join(this.path, name), { recursive: true, force: true });
      await syncFolder(this.path);
    };
    await writing(this.path, async () => {
      await gone(...first);
      await gone(...this.own);
      await gone(MARKER, LOCK);
      await rmdir(this.path).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "ENOTEMPTY") throw error;
      });
      await syncFolder(dirname(this.path));
    });
  }

  [Symbol.dispose](): void {
    this.lock[Symbol.dispose]();
  }
}

/** Whether something goes by this name. An empty folder is as good as none. */
async function isTaken(path: string): Promise<boolean> {
  const found = await lstat(path).catch(() => undefined);
  return found !== undefined && !(found.isDirectory() && (await readdir(path)).length === 0);
}
