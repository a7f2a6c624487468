import { closeSync, fstatSync, ftruncateSync, openSync, readFileSync, statSync, unlinkSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import { typeError } from "../device/errors.js";
import { native } from "../device/native.js";

const OWNER = "process ";

/**
 * A file that one process has at a time. The system frees it when its owner ends, however it ends.
 */
export class Lock {
  private readonly file: number;

  /**
   * @param wanted what there may be one of, for the message
   * @throws TypeError `LOCKED` naming the owner, `FILE` if the file cannot be made, or is somebody
   *   else's
   */
  constructor(
    private readonly path: string,
    wanted: string,
  ) {
    for (;;) {
      const { file, isOurs, said } = opened(path);
      if (!isOurs) {
        closeSync(file);
        throw typeError("LOCKED", `${path}: ${said || "another process"} is at work here, wanted ${wanted}`);
      }
      if (isNamed(file, path)) {
        this.file = file;
        return;
      }
      closeSync(file); // its owner ended, and removed it, after it was opened here
    }
  }

  [Symbol.dispose](): void {
    try {
      if (isNamed(this.file, this.path)) unlinkSync(this.path);
    } catch {
      // it is of no more use, and free
    }
    closeSync(this.file);
  }
}

function opened(path: string): { file: number; isOurs: boolean; said: string } {
  let file: number | undefined;
  try {
    file = openSync(path, "a+");
    const isOurs = native.lock(file);
    const said = readFileSync(file, "utf8");
    // the process that wrote it may have been killed amid that
    if (!said.startsWith(OWNER) && !OWNER.startsWith(said.replace(/\0+$/, "")))
      throw new Error("it holds something else than a lock");
    if (isOurs) {
      ftruncateSync(file);
      writeSync(file, `${OWNER}${process.pid} on ${hostname()}`);
    }
    return { file, isOurs, said };
  } catch (error) {
    if (file !== undefined) closeSync(file);
    throw typeError("FILE", `${path} cannot be opened: ${(error as Error).message}`);
  }
}

function isNamed(file: number, path: string): boolean {
  const there = statSync(path, { throwIfNoEntry: false });
  const here = fstatSync(file);
  return there?.ino === here.ino && there.dev === here.dev;
}
