import { createHash } from "node:crypto";
import { createReadStream, existsSync } from "node:fs";
import { open, readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { Lock } from "../../files/lock.js";
import { typeError } from "../../device/errors.js";
import { list } from "../../files/listed.js";
import { writeFileDurably } from "../../files/durable.js";
import { checkSafetensorsFile } from "../../model/safetensors.js";
import { damaged, heldToSum, sumLine, SUMS, sumsLines, sumsOf } from "../../files/sums.js";
import { MARKER, readMarker } from "./folder.js";
import { MODEL_FILE } from "./inputs.js";
import { givenUp, heldEnd, readSealed, sealed, sealedLines } from "./seal.js";

/** What is known of a file at rest. */
export interface Checked {
  file: string;
  /** `unknown`: it has no digest. */
  state: "ok" | "damaged" | "unknown";
  /** What is wrong with it, or was dropped. */
  note?: string;
}

/** How the files of a folder keep their checksums. */
interface Folder {
  path: string;
  sums: Map<string, string>;
  /** It is a run's, and so is the folder of its checkpoints. */
  isRun: boolean;
  isCheckpoints: boolean;
}

const SEALED = ["stages.json", "inputs.json"];
const isRun = (folder: string) => ["config.yaml", "inputs.json"].every((name) => existsSync(join(folder, name)));

/**
 * Checks every file of a run or a model against its digest, or one file.
 * @throws TypeError `FILE` if it is not there
 */
export async function check(path: string): Promise<Checked[]> {
  if (!(await isFolder(path))) return [await checkFile(await folderOf(dirname(path)), basename(path))];
  const all: Checked[] = [];
  for (const folder of await foldersOf(path)) all.push(...(await checkFolder(folder)));
  return all;
}

async function isFolder(path: string): Promise<boolean> {
  const found = await stat(path).catch((error: Error) => {
    throw typeError("FILE", `${path} cannot be read: ${error.message}`);
  });
  return found.isDirectory();
}

async function folderOf(path: string): Promise<Folder> {
  const isCheckpoints = basename(path) === "checkpoints" && isRun(dirname(path));
  return { path, sums: await sumsOf(path), isRun: isRun(path), isCheckpoints };
}

/**
 * The folder and those in it. Names that begin with a dot are nobody's outcome: locks, and what was
 * being written.
 */
async function foldersOf(path: string): Promise<Folder[]> {
  const within = (await readdir(path, { withFileTypes: true })).filter(
    (entry) => entry.isDirectory() && !entry.name.startsWith("."),
  );
  const deeper = await Promise.all(within.map(({ name }) => foldersOf(join(path, name))));
  return [await folderOf(path), ...deeper.flat()];
}

async function checkFolder(folder: Folder): Promise<Checked[]> {
  const all: Checked[] = [];
  for (const name of await filesIn(folder)) {
    const one = await checkFile(folder, name);
    if (existsSync(one.file) || folder.sums.has(name)) all.push(one); // else a run at work has removed it
  }
  const here = new Set(all.map(({ file }) => relative(folder.path, file)));
  for (const name of folder.sums.keys()) if (!here.has(name)) all.push(await checkFile(folder, name));
  return all;
}

async function filesIn({ path }: Folder): Promise<string[]> {
  const files: string[] = [];
  for (const name of (await readdir(path)).sort())
    if ((name === MARKER || !name.startsWith(".")) && (await stat(join(path, name)).catch(() => undefined))?.isFile())
      files.push(name);
  return files;
}

async function checkFile(folder: Folder, name: string): Promise<Checked> {
  const file = join(folder.path, name);
  try {
    const note = await verify(folder, name, file);
    return note === undefined ? { file, state: "unknown" } : { file, state: "ok", ...(note && { note }) };
  } catch (error) {
    const { message } = error as Error;
    return {
      file,
      state: "damaged",
      note: message.startsWith(file) ? message.slice(file.length).replace(/^:? /, "") : message,
    };
  }
}

/**
 * Undefined where there is no digest, else what there is to say of a file that is whole.
 * @throws for one that is damaged
 */
async function verify(folder: Folder, name: string, file: string): Promise<string | undefined> {
  if (name === MARKER) {
    await readMarker(folder.path);
    return "";
  }
  if (name === SUMS) return checkSums(await sumsLines(folder.path));
  if (name.endsWith(".damaged")) throw typeError("RESUME", "a resume found it damaged and set it aside");
  const listed = folder.sums.get(name);
  if (listed !== undefined) {
    await holdTo(listed, file);
    return "";
  }
  if (name.endsWith(".safetensors")) {
    const { verified } = await checkSafetensorsFile(file);
    if (!verified && folder.isCheckpoints)
      throw typeError("SAFETENSORS", "it has no digest: it is damaged, or an earlier version wrote it");
    return verified ? "" : undefined;
  }
  if (folder.isRun && SEALED.includes(name)) {
    await readSealed(file);
    return "";
  }
  if ((folder.isRun && name === "metrics.jsonl") || (folder.isCheckpoints && name.endsWith(".jsonl")))
    return checkLines(file, await bytesBefore(folder, name));
  return undefined;
}

async function holdTo(digest: string, file: string): Promise<void> {
  if (!existsSync(file)) throw damaged(file, "is missing");
  const handle = await open(file);
  try {
    for await (const _ of heldToSum(
      file,
      handle.createReadStream({ autoClose: false }) as AsyncIterable<Buffer>,
      digest,
    ));
  } finally {
    await handle.close();
  }
}

function checkSums(lines: readonly string[]): string {
  const wrong = lines.findIndex((line) => !sumLine(line));
  if (wrong >= 0) throw typeError("DAMAGED", `line ${wrong + 1} is none of sha256sum`);
  return "";
}

/** How many bytes of metrics.jsonl the stages that are done and the checkpoints tell of. */
async function bytesBefore({ path }: Folder, name: string): Promise<number> {
  if (name !== "metrics.jsonl") return 0;
  const told = [readSealed<{ metricsBytes: number }>(join(path, "stages.json"))];
  for (const one of await readdir(join(path, "checkpoints")).catch(() => []))
    if (one.endsWith(".safetensors"))
      told.push(
        checkSafetensorsFile(join(path, "checkpoints", one)).then(
          ({ metadata }) => JSON.parse(metadata.counters) as { metricsBytes: number },
        ),
      );
  return (await Promise.allSettled(told)).reduce(
    (most, one) => Math.max(most, one.status === "fulfilled" ? one.value.metricsBytes : 0),
    0,
  );
}

async function checkLines(file: string, least: number): Promise<string> {
  const content = await readFile(file);
  const wrong = [...sealedLines(content, file)].flatMap(({ line, fault }) => (fault ? line : []));
  if (wrong.length > 0)
    throw typeError(
      "RESUME",
      `line ${wrong.slice(0, 10).join(", ")}${wrong.length > 10 ? ` and ${wrong.length - 10} more` : ""}`,
    );
  const end = heldEnd(content);
  if (end < least)
    throw typeError("RESUME", `it has ${end} bytes in whole lines, wanted the ${least} that were there before`);
  return end < content.length ? "a last line that was cut off, as a crash leaves it: a resume drops it" : "";
}

/**
 * Takes the files of a run or a model as they are: those that are not what their digests say, and
 * those of a model without one, get new digests. Lines of metrics.jsonl that are no JSON are given
 * up. Checkpoints are never taken: an older one stands in for one that is damaged.
 * @throws TypeError `LOCKED` if a run is at work there, `RESUME` for a record of the run that is no
 *   JSON
 */
export async function accept(path: string): Promise<Checked[]> {
  const whole = await isFolder(path);
  for (const folder of whole ? await foldersOf(path) : [await folderOf(dirname(path))]) {
    const lock = join(folder.path, ".lock");
    using _ = existsSync(lock) ? new Lock(lock, "no run at work") : undefined;
    const sums = await sumsLines(folder.path);
    const lines = sums.filter((line) => sumLine(line)).map((line) => `${line}\n`);
    if (lines.length < sums.length) await writeFileDurably(join(folder.path, SUMS), lines.join(""));
    await acceptAll(folder, whole ? await checkFolder(folder) : [await checkFile(folder, basename(path))]);
  }
  return check(path);
}

async function acceptAll(folder: Folder, checked: readonly Checked[]): Promise<void> {
  if (folder.isCheckpoints) return;
  const digests: Record<string, string | undefined> = {};
  for (const { file, state } of checked) {
    const name = relative(folder.path, file);
    if (state === "ok" || name === SUMS || name === MARKER) continue; // a command that opens the folder writes its marker anew
    if (folder.isRun && SEALED.includes(name)) await reseal(file);
    else if (folder.isRun && name === "metrics.jsonl") await giveUpLines(file);
    else if (state === "damaged" || MODEL_FILE.test(name))
      digests[name] = existsSync(file) ? await digestOf(file) : undefined;
  }
  await list(folder.path, digests);
}

async function digestOf(file: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

async function reseal(file: string): Promise<void> {
  let value: object;
  try {
    value = JSON.parse(await readFile(file, "utf8")) as object;
  } catch (error) {
    throw typeError("RESUME", `${file} cannot be taken as it is: ${(error as Error).message}`);
  }
  await writeFileDurably(file, sealed(value, 2));
}

/** Lines keep their lengths: checkpoints tell how many bytes came before them. */
async function giveUpLines(file: string): Promise<void> {
  const content = await readFile(file);
  for (const { start, end, fault } of sealedLines(content, file)) {
    if (!fault) continue;
    const text = resealed(content.toString("utf8", start, end));
    content.write(text && Buffer.byteLength(text) === end - start ? text : (givenUp(end - start) ?? ""), start);
  }
  await writeFileDurably(file, [content]);
}

function resealed(line: string): string | undefined {
  try {
    return sealed(JSON.parse(line) as object);
  } catch {
    return undefined; // no JSON
  }
}
