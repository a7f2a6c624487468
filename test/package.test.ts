import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";

// The package as its users have it: packed, and installed into an empty folder where no install
// script runs and no compiler is found.

const { platforms } = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as { platforms: string[] };
const platform = `${process.platform}-${process.arch}-gnu`;
const addon = `@rlhf-kernels/${platform}`;
const packed = platforms.includes(platform) ? describe : describe.skip; // elsewhere the addon is built from source

const execute = promisify(execFile);
let folder: string;

const at = (...parts: string[]) => join(folder, ...parts);
const run = (command: string, ...args: string[]) =>
  execute(command, args, { cwd: folder, env: { PATH: at("bin"), HOME: process.env.HOME }, maxBuffer: 1 << 26 });
const manifest = async (name: string) =>
  JSON.parse(await readFile(at("node_modules", name, "package.json"), "utf8")) as Record<string, unknown>;

const example = async () =>
  (await readFile(join(root, "README.md"), "utf8")).match(/<!-- example -->\s+```js\n(.*?)```/s)![1];
/** The example with require() in place of import. */
const commonJs = (code: string) =>
  `(async () => {\n${code.replace(/^import (.*) from (".*");$/m, "const $1 = require($2);")}})();\n`;

packed("the installed package", () => {
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "rlhf-package-"));
    await mkdir(at("bin"));
    const found = (name: string) =>
      process.env
        .PATH!.split(":")
        .map((place) => join(place, name))
        .find(existsSync)!;
    for (const name of ["sh", "npm", "npx"]) await symlink(found(name), at("bin", name));
    await symlink(process.execPath, at("bin/node"));
    await writeFile(at("package.json"), JSON.stringify({ private: true }));
    await execute(process.execPath, [join(root, "native/package/pack.mjs")]);
    const packages = join(root, "build/packages");
    const tarballs = (await readdir(packages))
      .filter((name) => name.endsWith(".tgz"))
      .map((name) => join(packages, name));
    expect(tarballs).toHaveLength(2);
    await run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", ...tarballs);
    await writeFile(at("example.mjs"), await example());
    await writeFile(at("example.cjs"), commonJs(await example()));
  }, 180_000);
  afterAll(() => rm(folder, { recursive: true }));

  test("is found beside its addon's, which npm takes by platform and libc; neither has scripts, and no compiler is here", async () => {
    for (const name of ["cc", "gcc", "c++", "g++", "clang++", "make", "cmake"])
      await expect(run(name)).rejects.toMatchObject({ code: "ENOENT" });
    const [main, prebuilt] = [await manifest("rlhf-kernels"), await manifest(addon)];
    expect(main.optionalDependencies).toEqual(
      Object.fromEntries(platforms.map((name) => [`@rlhf-kernels/${name}`, main.version])),
    );
    expect(prebuilt).toMatchObject({
      version: main.version,
      os: [process.platform],
      cpu: [process.arch],
      libc: ["glibc"],
      license: main.license,
    });
    for (const { scripts, devDependencies } of [main, prebuilt])
      expect([scripts, devDependencies]).toEqual([undefined, undefined]);
    const files = (await readdir(at("node_modules/rlhf-kernels"), { recursive: true, withFileTypes: true })).filter(
      (entry) => entry.isFile(),
    );
    const kinds = new Set(files.map(({ name }) => name.slice(name.lastIndexOf(".") + 1)));
    expect([...kinds].toSorted()).toEqual([
      "LICENSE",
      "cc",
      "cmake",
      "css",
      "cu",
      "h",
      "html",
      "js",
      "json",
      "md",
      "mjs",
      "ts",
      "txt",
      "wgsl",
    ]);
    expect(files.filter(({ name }) => name.endsWith(".ts") && !name.endsWith(".d.ts"))).toEqual([]);
    expect(await readdir(at("node_modules", addon))).toEqual(
      expect.arrayContaining(["LICENSE", "README.md", "package.json", "rlhf_kernels.node"]),
    );
  });

  test("names what it is made of: each package that it needs at run time with licence and hash, and the addon's bytes", async () => {
    const text = await readFile(at("node_modules/rlhf-kernels/sbom.cdx.json"), "utf8");
    const { components, dependencies } = JSON.parse(text) as {
      components: {
        name: string;
        version: string;
        licenses?: unknown[];
        hashes?: { alg: string; content: string }[];
      }[];
      dependencies: { ref: string; dependsOn: string[] }[];
    };
    const lock = JSON.parse(await readFile(at("package-lock.json"), "utf8")) as {
      packages: Record<string, { version: string }>;
    };
    const installed = Object.entries(lock.packages).flatMap(([path, { version }]) =>
      path && path !== "node_modules/rlhf-kernels"
        ? `${path.slice(path.lastIndexOf("node_modules/") + 13)} ${version}`
        : [],
    );
    expect(components.map(({ name, version }) => `${name} ${version}`).toSorted()).toEqual(installed.toSorted());
    for (const { name, licenses, hashes } of components)
      expect([name, licenses?.length, hashes?.length]).toEqual([name, 1, 1]);
    const bytes = await readFile(at("node_modules", addon, "rlhf_kernels.node"));
    expect(components.find(({ name }) => name === addon)?.hashes?.[0].content).toBe(
      createHash("sha256").update(bytes).digest("hex"),
    );
    const refs = new Set(dependencies.map(({ ref }) => ref));
    for (const { dependsOn } of dependencies)
      for (const ref of dependsOn) expect(ref === addon || refs.has(ref)).toBe(true);
    expect(text).not.toMatch(/timestamp|serialNumber|\/tmp\/|"distribution"/);
  });

  test("the addon has the same bytes wherever it is built", async () => {
    const { stdout } = await execute("npm", ["run", "--silent", "reproduce", "--", "--addon"], { cwd: root });
    expect(stdout).toContain("reproduced: the same bytes at both places");
  }, 600_000);

  test("runs the README's example, by import and by require alike", async () => {
    const [esm, cjs] = [await run("node", "example.mjs"), await run("node", "example.cjs")];
    expect(esm.stdout).toContain("[ 5, 4, 8 ]");
    expect(cjs).toEqual(esm);
    expect(esm.stderr).toBe("");
  });

  test("is one module, however it is loaded", async () => {
    await writeFile(
      at("both.mjs"),
      'import { createRequire } from "node:module";\nimport * as a from "rlhf-kernels";\nconst b = createRequire(import.meta.url)("rlhf-kernels");\nconsole.log(a.Tensor === b.Tensor, a.ops.gae === b.ops.gae);',
    );
    expect((await run("node", "both.mjs")).stdout).toBe("true true\n");
  });

  test("has types under nodenext, for modules of both kinds, its declarations checked too", async () => {
    const wrong =
      "// @ts-expect-error: a tensor, not a text\nops.gae('rewards', Float32Array.of(1), Int32Array.of(0, 1), { gamma: 1, lambda: 1 });\n";
    await writeFile(at("types.mts"), `import { ops } from "rlhf-kernels";\n${wrong}`);
    await writeFile(at("types.cts"), `import { ops } from "rlhf-kernels";\n${wrong}`);
    const options = {
      module: "nodenext",
      strict: true,
      noImplicitAny: false,
      allowJs: true,
      checkJs: true,
      noEmit: true,
      types: [],
    };
    const files = ["example.mjs", "example.cjs", "types.mts", "types.cts"];
    await writeFile(at("tsconfig.json"), JSON.stringify({ compilerOptions: options, files }));
    const { stdout } = await run("node", join(root, "node_modules/typescript/bin/tsc"), "-p", ".").catch(
      (error: { stdout: string }) => error,
    );
    expect(stdout).toBe("");
  });

  test("has the command: a short demo from text to policy", async () => {
    const small = [
      "model: { layers: 1, width: 32, heads: 2, kvHeads: 2, mlp: 48, vocabulary: 300, context: 64 }",
      "sft: { steps: 4, batchTokens: 256, sequenceLength: 64, warmup: 2 }",
      "collect: { prompts: 8, samples: 2, maxTokens: 8 }",
      "reward: { epochs: 1, warmup: 0 }",
      "ppo: { updates: 2, rolloutBatch: 4, samples: 2, maxTokens: 8 }",
      "eval: { prompts: 4, maxTokens: 8 }",
    ];
    await writeFile(at("small.yaml"), small.join("\n"));
    const { stdout } = await run("npx", "rlhf", "demo", "--config", "small.yaml");
    expect(stdout).toContain("win rate");
    expect((await readdir(at("runs/demo"))).toSorted()).toEqual(
      expect.arrayContaining(["base", "policy", "report.html", "reward", "summary.json"]),
    );
    expect((await run("npx", "rlhf", "ops")).stdout).toContain("linearPolicyLoss");
  });

  test("the prebuilt addon loads on glibc 2.28 and the libstdc++ of GCC 8, as Node.js 20 does", async () => {
    const floor = { GLIBC: [2, 28], GLIBCXX: [3, 4, 25], CXXABI: [1, 3, 11], GCC: [7, 0, 0] };
    const { stdout } = await execute("objdump", ["-p", at("node_modules", addon, "rlhf_kernels.node")]);
    const needs = [...stdout.matchAll(/^ +0x\w+ 0x\w+ \d+ (\w+)_([\d.]+)$/gm)].map(([, library, version]) => ({
      library,
      version,
    }));
    expect(new Set(needs.map(({ library }) => library))).toEqual(new Set(Object.keys(floor)));
    const newer = needs.filter(({ library, version }) => {
      const [have, most] = [version.split(".").map(Number), floor[library as keyof typeof floor]];
      const i = have.findIndex((part, i) => part !== (most[i] ?? 0));
      return i >= 0 && have[i] > (most[i] ?? 0);
    });
    expect(newer).toEqual([]);
  });

  test("without its addon the package says what it tried and how that is mended", async () => {
    const failure = () =>
      run("node", "example.mjs").then(
        () => "",
        (error: { stderr: string }) => error.stderr,
      );
    const place = at("node_modules", addon);
    const { version } = await manifest("rlhf-kernels");
    const described = (of: unknown) =>
      writeFile(join(place, "package.json"), JSON.stringify({ name: addon, version: of, main: "rlhf_kernels.node" }));
    await rename(place, at("away"));
    try {
      const none = await failure();
      expect(none).toContain(
        `Error: rlhf-kernels: no native addon for ${process.platform}-${process.arch} could be loaded. Tried:\n  ${addon}: not there\n`,
      );
      expect(none).toMatch(/node_modules\/rlhf-kernels\/build\/native\/Release\/rlhf_kernels\.node: not there\n/);
      expect(none).toContain(`npm install ${addon}@${version as string}`);
      expect(none).toMatch(/node \S+\/node_modules\/rlhf-kernels\/native\/package\/setup\.mjs/);

      await mkdir(place);
      await described(version);
      await writeFile(join(place, "rlhf_kernels.node"), "of another machine");
      expect(await failure()).toMatch(new RegExp(`${addon}: .*rlhf_kernels.node: \\S`)); // as the dynamic linker says it
      await described("0.0.1");
      expect(await failure()).toContain(`${addon}: its version is 0.0.1, wanted ${version as string}\n`);
    } finally {
      await rm(place, { recursive: true, force: true });
      await rename(at("away"), place);
    }
  });
});
