import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import { typeError } from "../device/errors.js";
import { native } from "../device/native.js";

/** A file that one process has at a time. The system frees it when its owner ends, however it ends. */
export class Lock {
  private readonly file: number;

  /** @throws TypeError `LOCKED` naming the owner */
  constructor(path: string) {
    this.file = openSync(path, "a+");
    if (native.lock(this.file)) {
      ftruncateSync(this.file);
      writeSync(this.file, `process ${process.pid} on ${hostname()}`);
      return;
    }
    const owner = readFileSync(this.file, "utf8");
    closeSync(this.file);
    throw typeError("LOCKED", `${path}: ${owner || "another process"} is at work in this folder, wanted one run at a time`);
  }

  [Symbol.dispose](): void {
    closeSync(this.file);
  }
}
