// What npm publishes, made in build/packages: the package itself, and one with the addon for this machine's platform, which the first
// names in its optionalDependencies as it does those of every other of package.json's "platforms" (each packed on a machine of its own,
// all published before it). npm takes the one that fits, and no install script runs.
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const out = join(root, "build/packages");
const { devDependencies: _dev, scripts: _scripts, platforms, files, ...manifest } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const { version, license, engines } = manifest;
const scoped = (platform) => `@rlhf-kernels/${platform}`;

const npm = (folder, ...args) => JSON.parse(execFileSync("npm", ["pack", "--json", "--ignore-scripts", ...args], { cwd: folder, encoding: "utf8" }))[0];

/** A tarball of these files of the repository, under their names in it. */
function pack(folder, description, named) {
  for (const [name, from] of named) cpSync(join(root, from), join(folder, name));
  writeFileSync(join(folder, "package.json"), `${JSON.stringify(description, null, 2)}\n`);
  console.log(join(out, npm(folder, "--pack-destination", out).filename));
}

rmSync(out, { recursive: true, force: true });

const { os, cpu, libc } = { os: process.platform, cpu: process.arch, libc: process.platform === "linux" ? libcOf() : undefined };
const platform = [os, cpu, { glibc: "gnu", musl: "musl" }[libc]].filter(Boolean).join("-");
if (!platforms.includes(platform)) console.error(`rlhf-kernels: ${platform} is not among "platforms" in package.json (${platforms.join(", ")})`);

function libcOf() {
  process.report.excludeNetwork = true; // or it asks for the name of every address
  return process.report.getReport().header.glibcVersionRuntime ? "glibc" : "musl";
}

const described = { version, license, engines, os: [os], cpu: [cpu], libc: libc && [libc] };
const addon = { name: scoped(platform), description: `The addon of rlhf-kernels for ${platform}`, ...described, main: "rlhf_kernels.node" };
mkdirSync(join(out, platform), { recursive: true });
writeFileSync(join(out, platform, "README.md"), `# ${addon.name}\n\n${addon.description}, which installs it. It has no use by itself.\n`);
pack(join(out, platform), { ...addon, files: ["rlhf_kernels.node"] }, [
  ["rlhf_kernels.node", "build/native/Release/rlhf_kernels.node"],
  ["LICENSE", "LICENSE"],
]);

const optionalDependencies = Object.fromEntries(platforms.map((name) => [scoped(name), version]));
// what an older build left in dist stays out
const current = ({ path }) => !path.startsWith("dist/") || existsSync(join(root, path.replace(/^dist\/(.*?)(\.d\.ts|\.js)$/, "$1.ts")));
const listed = npm(root, "--dry-run").files.filter(current);
pack(
  join(out, "main"),
  { ...manifest, optionalDependencies, files },
  listed.map(({ path }) => [path, path]),
);
