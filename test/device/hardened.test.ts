import { readFileSync } from "node:fs";
import { expect, test } from "@jest/globals";
import { addon } from "../child.js";

const DYNAMIC = 2;
const RELRO = 0x6474e552;
const STACK = 0x6474e551;
const [FLAGS, FLAGS_1] = [30, 0x6ffffffb];

/** What the linker was told, from the ELF file's own tables (64 bits, little-endian). */
function facts(file: Buffer): { types: number[]; stack: number; tags: Map<number, number> } {
  const [at, size, count] = [Number(file.readBigUInt64LE(32)), file.readUInt16LE(54), file.readUInt16LE(56)];
  const tags = new Map<number, number>();
  const types: number[] = [];
  let stack = -1;
  for (let i = 0; i < count; i++) {
    const header = at + i * size;
    const type = file.readUInt32LE(header);
    types.push(type);
    if (type === STACK) stack = file.readUInt32LE(header + 4);
    if (type !== DYNAMIC) continue;
    const [from, bytes] = [Number(file.readBigUInt64LE(header + 8)), Number(file.readBigUInt64LE(header + 32))];
    for (let tag = from; tag < from + bytes; tag += 16)
      tags.set(Number(file.readBigInt64LE(tag)), Number(file.readBigUInt64LE(tag + 8)));
  }
  return { types, stack, tags };
}

const [READ, WRITE] = [4, 2];
(process.platform === "linux" ? test : test.skip)(
  "the addon binds its symbols at once, keeps its tables read-only, its stack free of code, stays loaded, and has canaries",
  () => {
    const file = readFileSync(addon);
    expect(file.subarray(0, 6).toString("latin1")).toBe("\x7fELF\x02\x01");
    const { types, stack, tags } = facts(file);
    expect(types).toContain(RELRO);
    expect(stack).toBe(READ + WRITE);
    expect((tags.get(FLAGS) ?? 0) & 8).toBe(8); // BIND_NOW
    expect((tags.get(FLAGS_1) ?? 0) & 0x9).toBe(0x9); // NOW, NODELETE
    expect(file.includes("__stack_chk_fail\0")).toBe(true);
  },
);
