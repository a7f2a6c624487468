import { randomBytes } from "node:crypto";
import { closeSync, constants, openSync } from "node:fs";
import { mkdir, open, readdir, rename, rm, stat, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { typeError } from "../device/errors.js";
import { native } from "../device/native.js";

// Files and folders that outlive a kill and a power loss: contents are synced before a name points
// at them, names before anything builds on them.

const WRITE_LIMIT = 2 ** 30; // one write call takes less than 2^31 bytes

/** A name for what is being written beside a file. What is left by such a name is swept. */
export const besideName = (file: string): string =>
  join(dirname(file), `.${basename(file)}.${randomBytes(6).toString("hex")}.rlhf`);
const BESIDE = /^\..+\.[0-9a-f]{12}\.rlhf$/;

/** What writes itself to a file. */
export interface Content {
  write(handle: FileHandle): Promise<void>;
  /** SHA-256 of the file, once it is written. */
  sha256(): string;
}

/** What a file is to hold. */
type Durable = string | Iterable<Uint8Array> | AsyncIterable<Uint8Array> | Pick<Content, "write">;

/**
 * Writes a file beside, syncs it, then renames it over the old one: a reader sees the old or the
 * new one, whole.
 * @throws TypeError `WRITE` if the system refuses: no room, no permission, no such folder
 */
export async function writeFileDurably(file: string, content: Durable): Promise<void> {
  const folder = dirname(file);
  await sweep(folder);
  await writing(file, async () => {
    const { path, handle } = await openBeside(file);
    try {
      if (typeof content === "object" && "write" in content) await content.write(handle);
      else
        for await (const part of typeof content === "string" ? [Buffer.from(content)] : content)
          for (let at = 0; at < part.length;)
            at += (await handle.write(part, at, Math.min(WRITE_LIMIT, part.length - at))).bytesWritten;
      await handle.sync();
      await rename(path, file);
    } catch (error) {
      await rm(path, { force: true }).catch(() => undefined);
      throw error;
    } finally {
      await handle.close();
    }
    await syncFolder(folder);
  });
}

/**
 * Does what writes a file. A refusal of the system becomes a TypeError `WRITE` that names the file.
 */
export async function writing<T>(file: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw refusal(file, error);
  }
}

/** Does synchronous work that writes a file; errors name the file, as those of `writing` do. */
export function writingNow<T>(file: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw refusal(file, error);
  }
}

function refusal(file: string, error: unknown): unknown {
  const { syscall, message } = error as NodeJS.ErrnoException;
  return syscall ? typeError("WRITE", `${file} cannot be written: ${message}`) : error;
}

/**
 * A new file beside this one. Its writer holds a lock on it until it is renamed: an unlocked one
 * was left by a process that ended. Between the two calls another process may take it for such a
 * leftover, and then a new name is drawn.
 */
async function openBeside(file: string): Promise<{ path: string; handle: FileHandle }> {
  for (;;) {
    const path = besideName(file);
    const handle = await open(path, "wx");
    try {
      if (locked(handle.fd) && (await handle.stat()).nlink > 0) return { path, handle };
    } catch (error) {
      await handle.close();
      throw error;
    }
    await handle.close();
  }
}

/** Whether nobody else has a lock on the file; where there are no locks, nobody has. */
function locked(fd: number): boolean {
  try {
    return native.lock(fd);
  } catch {
    return true;
  }
}

/** Removes what processes that were killed here were writing. What a living one writes stays. */
export async function sweep(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  for (const name of names) {
    if (!BESIDE.test(name)) continue;
    const path = join(folder, name);
    let file: number | undefined;
    try {
      file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
      if (native.lock(file)) await rm(path, { force: true });
    } catch {
      // gone, not ours to read, or no file: it stays
    } finally {
      if (file !== undefined) closeSync(file);
    }
  }
}

/**
 * Makes a folder and those above it, where they are missing; their names are durable then.
 * @throws TypeError `WRITE` if the system refuses
 */
export async function makeFolder(path: string): Promise<void> {
  await writing(path, () => makeNested(path));
}

async function makeNested(path: string): Promise<void> {
  const make = () =>
    mkdir(path).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST" || !(await stat(path)).isDirectory()) throw error;
    });
  await make().catch(async (error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT") throw error;
    await makeNested(dirname(path));
    await make();
  });
  // also of one that was there: whoever made it may have been killed before this
  await syncFolder(dirname(path)).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EACCES") throw error; // a folder that others made, and that may not be listed
  });
}

/** New names in the folder are durable from then on. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync().catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EINVAL") throw error; // a file system that has no such call
    });
  } finally {
    await folder.close();
  }
}
