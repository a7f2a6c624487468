import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";

// docs/dependencies.md says what the package depends on. What it says is what is installed.

interface Manifest {
  version: string;
  license: string;
  dependencies?: Record<string, string>;
  scripts?: Record<string, string>;
}
interface Locked {
  version: string;
  license?: string;
  dev?: boolean;
  peer?: boolean;
  optional?: boolean;
  hasInstallScript?: boolean;
  dependencies?: Record<string, string>;
}

const json = async <T>(...path: string[]) => JSON.parse(await readFile(join(root, ...path), "utf8")) as T;
const FREE = ["MIT", "Apache-2.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "0BSD"];

async function bytesOf(folder: string): Promise<number> {
  let bytes = 0;
  for (const entry of await readdir(folder, { withFileTypes: true }))
    if (entry.isDirectory()) bytes += entry.name === "node_modules" ? 0 : await bytesOf(join(folder, entry.name));
    else bytes += (await stat(join(folder, entry.name))).size;
  return bytes;
}

/** The packages that one depends on, however far. */
function brought(name: string, packages: Record<string, Locked>, found = new Set<string>()): Set<string> {
  for (const other of Object.keys(packages[`node_modules/${name}`].dependencies ?? {}))
    if (!found.has(other)) brought(other, packages, found.add(other));
  return found;
}

test("the table of runtime dependencies is package.json's list and what is installed", async () => {
  const { dependencies } = await json<Manifest>("package.json");
  const { packages } = await json<{ packages: Record<string, Locked> }>("package-lock.json");
  const rows = [];
  for (const [name, wanted] of Object.entries(dependencies!)) {
    const { version, license, scripts = {} } = await json<Manifest>("node_modules", name, "package.json");
    expect([name, version, packages[`node_modules/${name}`].version]).toEqual([name, wanted, wanted]);
    const size = `${Math.round((await bytesOf(join(root, "node_modules", name))) / 1024).toLocaleString("en-US")} KiB`;
    const runs = ["preinstall", "install", "postinstall"].some((script) => script in scripts) ? "yes" : "no";
    rows.push([name, version, license, size, String(brought(name, packages).size), runs]);
  }
  const page = await readFile(join(root, "docs/dependencies.md"), "utf8");
  const table = [...page.matchAll(/^\| (.*) \|$/gm)]
    .slice(2)
    .map(([, row]) => row.split("|").map((cell) => cell.trim()));
  expect(table.map((row) => row.slice(0, -1))).toEqual(rows);
  for (const row of table) expect([row[0], row.at(-1)!.length > 10]).toEqual([row[0], true]);
});

test("no package that is installed with this one runs a script or has another kind of licence", async () => {
  const { packages } = await json<{ packages: Record<string, Locked> }>("package-lock.json");
  const installed = Object.entries(packages).filter(
    ([path, { dev, peer, optional }]) => path && !dev && !peer && !optional,
  );
  expect(installed.length).toBeGreaterThan(200);
  for (const [path, { license, hasInstallScript = false }] of installed)
    expect([path, FREE.includes(license ?? ""), hasInstallScript]).toEqual([path, true, false]);
});
