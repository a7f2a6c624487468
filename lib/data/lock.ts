import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import { typeError } from "../device/errors.js";
import { native } from "../device/native.js";

/** A file that one process has at a time. The system frees it when its owner ends, however it ends. */
export class Lock {
  private readonly file: number;

  /**
   * @param wanted what there may be one of, for the message
   * @throws TypeError `LOCKED` naming the owner, `FILE` if the file cannot be made
   */
  constructor(path: string, wanted: string) {
    try {
      this.file = openSync(path, "a+");
    } catch (error) {
      throw typeError("FILE", `${path} cannot be opened: ${(error as Error).message}`);
    }
    if (native.lock(this.file)) {
      ftruncateSync(this.file);
      writeSync(this.file, `process ${process.pid} on ${hostname()}`);
      return;
    }
    const owner = readFileSync(this.file, "utf8");
    closeSync(this.file);
    throw typeError("LOCKED", `${path}: ${owner || "another process"} is at work here, wanted ${wanted}`);
  }

  [Symbol.dispose](): void {
    closeSync(this.file);
  }
}
