// Finds docstrings that cannot stand alone in a hover since their first words lean on something
// outside: "Of klCoef.", "The same of the critic." `node test/docstrings.mjs lib bench` names each
// one by file and line, and ends with 1 if there are any. No build is needed.
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/**
 * First words that lean on what stands before the docstring, or on the name of what it describes.
 */
const LEANING = /^(?:Of|The same|Same|As|Its|By|To|And|Or|Those|That of|Theirs?|One of its)\b|^[^.]{0,40},$/;
const DOCSTRING = /\/\*\*(?!\/)(.*?)\*\//gs;

function files(path) {
  if (statSync(path).isFile()) return [path];
  return readdirSync(path)
    .sort()
    .filter((name) => name !== "node_modules" && name !== "fixtures")
    .flatMap((name) => files(join(path, name)))
    .filter((name) => /\.(ts|mts|mjs|js)$/.test(name));
}

/** The faults of a source: each docstring's line and first words. */
export function leaning(source) {
  const found = [];
  for (const { 1: body, index } of source.matchAll(DOCSTRING)) {
    const before = source.slice(source.lastIndexOf("\n", index) + 1, index);
    if (/["'`/]/.test(before)) continue; // within a string, a pattern or a line comment
    const text = body.replace(/^\s*\*? ?/gm, "").trim();
    if (!LEANING.test(text)) continue;
    found.push({ line: source.slice(0, index).split("\n").length, text: text.split("\n")[0] });
  }
  return found;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const faults = process.argv
    .slice(2)
    .flatMap(files)
    .flatMap((file) => leaning(readFileSync(file, "utf8")).map(({ line, text }) => `${file}:${line}: ${text}`));
  for (const fault of faults) console.error(fault);
  if (faults.length > 0) {
    console.error(`${faults.length} docstrings do not stand alone: begin with what the thing is`);
    process.exitCode = 1;
  }
}
