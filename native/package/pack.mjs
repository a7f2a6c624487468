// What npm publishes, made in build/packages: the package itself, and one with the addon for this
// machine's platform, which the first names in its optionalDependencies as it does those of every
// other of package.json's "platforms" (each packed on a machine of its own, all published before
// it). npm takes the one that fits, and no install script runs. Beside them stands sbom.cdx.json,
// the bill of materials (CycloneDX), which the package holds too. The same commit and compiler give
// the same bytes: native/package/reproduce.mjs.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const out = join(root, "build/packages");
const {
  devDependencies: _dev,
  scripts: _scripts,
  platforms,
  files,
  ...manifest
} = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const { version, license, engines } = manifest;
const scoped = (platform) => `@rlhf-kernels/${platform}`;

const npm = (folder, ...args) =>
  JSON.parse(
    execFileSync("npm", ["pack", "--json", "--ignore-scripts", ...args], { cwd: folder, encoding: "utf8" }),
  )[0];

/** A tarball of these files of the repository, under their names in it. */
function pack(folder, description, named) {
  for (const [name, from] of named) cpSync(join(root, from), join(folder, name));
  writeFileSync(join(folder, "package.json"), `${JSON.stringify(description, null, 2)}\n`);
  console.log(join(out, npm(folder, "--pack-destination", out).filename));
}

rmSync(out, { recursive: true, force: true });

const { os, cpu, libc } = {
  os: process.platform,
  cpu: process.arch,
  libc: process.platform === "linux" ? libcOf() : undefined,
};
const platform = [os, cpu, { glibc: "gnu", musl: "musl" }[libc]].filter(Boolean).join("-");
if (!platforms.includes(platform))
  console.error(`rlhf-kernels: ${platform} is not among "platforms" in package.json (${platforms.join(", ")})`);

function libcOf() {
  process.report.excludeNetwork = true; // or it asks for the name of every address
  return process.report.getReport().header.glibcVersionRuntime ? "glibc" : "musl";
}

const described = { version, license, engines, os: [os], cpu: [cpu], libc: libc && [libc] };
const addon = {
  name: scoped(platform),
  description: `The addon of rlhf-kernels for ${platform}`,
  ...described,
  main: "rlhf_kernels.node",
};
mkdirSync(join(out, platform), { recursive: true });
writeFileSync(
  join(out, platform, "README.md"),
  `# ${addon.name}\n\n${addon.description}, which installs it. It has no use by itself.\n`,
);
pack(join(out, platform), { ...addon, files: ["rlhf_kernels.node"] }, [
  ["rlhf_kernels.node", "build/native/Release/rlhf_kernels.node"],
  ["LICENSE", "LICENSE"],
]);

/**
 * What the package is made of: each package that it needs at run time with its licence and hash,
 * and the addon. Nothing in it tells of time or place. npm's own --omit dev leaves out what a
 * development dependency needs too, so the graph is walked here.
 */
function billOfMaterials() {
  const sbom = JSON.parse(
    execFileSync("npm", ["sbom", "--sbom-format", "cyclonedx"], { cwd: root, encoding: "utf8", maxBuffer: 1 << 28 }),
  );
  const { serialNumber: _serial, metadata, ...rest } = sbom;
  const own = metadata.component["bom-ref"];
  const edges = new Map(rest.dependencies.map(({ ref, dependsOn }) => [ref, dependsOn]));
  const refOf = (name) => edges.get(own).find((ref) => ref.slice(0, ref.lastIndexOf("@")) === name);
  const direct = Object.keys(manifest.dependencies).map(refOf);
  const needed = new Set(direct);
  for (const ref of needed) for (const next of edges.get(ref) ?? []) needed.add(next);
  const placeless = ({ externalReferences = [], ...component }) => ({
    ...component,
    externalReferences: externalReferences.filter(({ type }) => type !== "distribution"), // the registry of this machine
  });
  const hash = createHash("sha256")
    .update(readFileSync(join(root, "build/native/Release/rlhf_kernels.node")))
    .digest("hex");
  const hashes = [{ alg: "SHA-256", content: hash }];
  const native = {
    "bom-ref": addon.name,
    type: "library",
    name: addon.name,
    version,
    licenses: [{ license: { id: license } }],
    hashes,
  };
  return {
    ...rest,
    metadata: { component: { ...metadata.component, name: manifest.name } },
    components: [native, ...rest.components.filter((one) => needed.has(one["bom-ref"])).map(placeless)],
    dependencies: [
      { ref: own, dependsOn: [addon.name, ...direct] },
      ...[...needed].sort((a, b) => (a < b ? -1 : 1)).map((ref) => ({ ref, dependsOn: edges.get(ref) ?? [] })),
    ],
  };
}
writeFileSync(join(out, "sbom.cdx.json"), `${JSON.stringify(billOfMaterials(), null, 2)}\n`);

const optionalDependencies = Object.fromEntries(platforms.map((name) => [scoped(name), version]));
// what an older build left in dist stays out
const current = ({ path }) =>
  !path.startsWith("dist/") || existsSync(join(root, path.replace(/^dist\/(.*?)(\.d\.ts|\.js)$/, "$1.ts")));
const listed = npm(root, "--dry-run").files.filter(current);
pack(join(out, "main"), { ...manifest, optionalDependencies, files: [...files, "sbom.cdx.json"] }, [
  ...listed.map(({ path }) => [path, path]),
  ["sbom.cdx.json", "build/packages/sbom.cdx.json"],
]);
