// Builds what npm publishes twice from the last commit, in clones at two places, and compares the
// bytes: `npm run reproduce`. With `--addon` it builds the addon alone, once, from the sources that
// are here, and compares it with build/native. Exit status 1 if they differ.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const ADDON = "build/native/Release/rlhf_kernels.node";
const alone = process.argv.includes("--addon");

const run = (command, args, cwd) => execFileSync(command, args, { cwd, stdio: ["ignore", "ignore", "inherit"] });
const hashOf = (file) => createHash("sha256").update(readFileSync(file)).digest("hex");

/** Every file that is published, and its hash. */
function published(folder) {
  if (alone) return new Map([[ADDON, hashOf(join(folder, ADDON))]]);
  const packages = join(folder, "build/packages");
  const names = readdirSync(packages).filter((name) => statSync(join(packages, name)).isFile());
  return new Map([
    [ADDON, hashOf(join(folder, ADDON))],
    ...names.sort().map((name) => [name, hashOf(join(packages, name))]),
  ]);
}

function build(folder) {
  if (alone) {
    for (const name of ["CMakeLists.txt", "package.json", "native", "kernels"])
      cpSync(join(root, name), join(folder, name), { recursive: true });
    symlinkSync(join(root, "node_modules"), join(folder, "node_modules"));
    run("npm", ["run", "--silent", existsSync(join(root, "build/.cuda.stamp")) ? "build:cuda" : "setup"], folder);
    return;
  }
  run("git", ["clone", "--quiet", root, folder]);
  run("npm", ["run", "--silent", "setup"], folder);
  run("npm", ["run", "--silent", "pack"], folder);
}

const folders = Array.from({ length: alone ? 1 : 2 }, (_, i) =>
  mkdtempSync(join(tmpdir(), `rlhf-reproduce${"-again".repeat(i)}-`)),
);
try {
  for (const folder of folders) build(folder);
  const [first, second] = [...(alone ? [root] : []), ...folders].map(published);
  let same = first.size === second.size;
  for (const [name, hash] of first) {
    const equal = second.get(name) === hash;
    same &&= equal;
    console.log(`${equal ? "same" : "DIFFERS"}  ${hash}  ${name}`);
  }
  console.log(same ? "reproduced: the same bytes at both places" : "not reproduced");
  process.exitCode = same ? 0 : 1;
} finally {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
}
