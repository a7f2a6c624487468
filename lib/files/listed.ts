import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { makeFolder, writeFileDurably, type Content } from "./durable.js";
import { sumLine, SUMS, sumsLines } from "./sums.js";

/** What a file is to hold: text, bytes, these in parts, or what writes itself. */
export type ListedContent = string | Uint8Array | Iterable<Uint8Array> | Content;

/**
 * Writes files of a folder, each beside, synced, then renamed, and lists their digests in its
 * SHA256SUMS. A file whose content is undefined is removed. While files are replaced they are not
 * listed, so a process that is killed leaves no digest that is wrong.
 * @throws TypeError `WRITE` if the system refuses
 */
export async function writeListed(folder: string, files: Record<string, ListedContent | undefined>): Promise<void> {
  await makeFolder(folder);
  await list(folder, Object.fromEntries(Object.keys(files).map((name) => [name, undefined])));
  const digests: Record<string, string | undefined> = {};
  for (const [name, content] of Object.entries(files)) {
    if (content === undefined) await rm(join(folder, name), { force: true });
    else {
      const self = selfWriting(content);
      await writeFileDurably(join(folder, name), self);
      digests[name] = self.sha256();
    }
  }
  await list(folder, digests);
}

function selfWriting(content: ListedContent): Content {
  if (typeof content === "object" && "sha256" in content) return content;
  const hash = createHash("sha256");
  return {
    async write(handle) {
      for (const part of typeof content === "string"
        ? [Buffer.from(content)]
        : content instanceof Uint8Array
          ? [content]
          : content) {
        hash.update(part);
        await handle.appendFile(part);
      }
    },
    sha256: () => hash.digest("hex"),
  };
}

const NAME = 66; // where the name begins in a line

/**
 * Lists these digests in a folder's SHA256SUMS, in place of those that it had for these names;
 * undefined is none. Names are in order.
 */
export async function list(folder: string, digests: Record<string, string | undefined>): Promise<void> {
  const before = await sumsLines(folder);
  const kept = before.filter((line) => !Object.hasOwn(digests, sumLine(line)?.name ?? ""));
  const added = Object.entries(digests).flatMap(([name, digest]) => (digest === undefined ? [] : `${digest}  ${name}`));
  const lines = [...kept, ...added].sort((a, b) => (a.slice(NAME) < b.slice(NAME) ? -1 : 1));
  if (lines.join("\n") !== before.join("\n"))
    await writeFileDurably(join(folder, SUMS), lines.map((line) => `${line}\n`).join(""));
}
