// Everything between a fresh clone and a first run, each step only where it is needed: packages,
// addon, TypeScript; in an installed package, whose packages and JavaScript are there, the addon
// alone. Needs Node alone to start; says in one sentence what else is missing.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
process.chdir(root);

function fail(message) {
  console.error(`rlhf-kernels: ${message}`);
  process.exit(1);
}

function files(place) {
  if (!existsSync(place)) return [];
  if (statSync(place).isFile()) return [place];
  return readdirSync(place)
    .sort()
    .flatMap((name) => files(join(place, name)));
}

function hashOf(places) {
  const hash = createHash("sha256").update(`${process.platform} ${process.arch} ${process.versions.modules}`);
  for (const file of places.flatMap(files)) hash.update(`\0${relative(root, file)}\0`).update(readFileSync(file));
  return hash.digest("hex");
}

const stampOf = (name) => join(root, "build", `.${name}.stamp`);

/** The step has been done with these sources. */
function keep(name, sources) {
  mkdirSync(join(root, "build"), { recursive: true });
  writeFileSync(stampOf(name), hashOf(sources));
}

/** Runs a step unless its sources are what they were when it last ran to its end. */
function step(name, { sources, makes, run }) {
  const stamp = stampOf(name);
  if (existsSync(makes) && existsSync(stamp) && readFileSync(stamp, "utf8") === hashOf(sources)) return;
  const start = Date.now();
  process.stderr.write(`${name} ... `);
  run();
  keep(name, sources);
  process.stderr.write(`${((Date.now() - start) / 1000).toFixed(0)} s\n`);
}

function execute(command, args, hint = "") {
  const result = spawnSync(command, args, { encoding: "utf8", maxBuffer: 1 << 28 });
  if (result.status === 0) return;
  process.stderr.write("failed\n");
  fail(
    `${[command, ...args].join(" ")} failed.${hint}\n${result.error?.message ?? ""}${result.stdout ?? ""}${result.stderr ?? ""}`,
  );
}

const there = (command) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;

const [major, minor] = process.versions.node.split(".").map(Number); // as package.json's `engines`
if (!((major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22))
  fail(`Node.js is ${process.versions.node}, wanted 20.19 or newer, or 22.12 or newer.`);

const npm = process.platform === "win32" ? "npm.cmd" : "npm";
function packages(name, folder) {
  step(name, {
    sources: ["package.json", "package-lock.json"].map((file) => join(folder, file)),
    makes: join(root, folder, "node_modules", ".package-lock.json"),
    run: () =>
      execute(npm, ["install", "--prefix", folder, "--no-save", "--ignore-scripts", "--no-audit", "--no-fund"]),
  });
}

const cloned = existsSync("package-lock.json");
if (cloned) packages("packages", ".");

function compile(folder, ...definitions) {
  const missing = [];
  if (!there("cmake")) missing.push("cmake");
  if (!["c++", "g++", "clang++"].some(there)) missing.push("a C++ compiler");
  if (!["make", "gmake", "ninja"].some(there)) missing.push("make");
  if (missing.length > 0)
    fail(
      `${missing.join(" and ")} ${missing.length > 1 ? "are" : "is"} missing; install with "sudo apt-get install g++ make cmake" (Debian), ` +
        `"sudo dnf install gcc-c++ make cmake" (Fedora) or "xcode-select --install && brew install cmake" (macOS).`,
    );
  const all = ["RLHF_NODE=ON", ...definitions];
  const cmakeJs = "node_modules/cmake-js/bin/cmake-js"; // in a clone; an installed package has CMake alone
  if (existsSync(cmakeJs))
    for (const command of ["configure", "build"])
      execute(process.execPath, [
        cmakeJs,
        command,
        "-O",
        folder,
        "--parallel",
        "2",
        ...all.map((definition) => `--CD${definition}`),
      ]);
  else {
    execute("cmake", [
      "-S",
      ".",
      "-B",
      folder,
      ...(there("ninja") ? ["-G", "Ninja"] : []),
      ...all.map((definition) => `-D${definition}`),
    ]);
    execute("cmake", ["--build", folder, "--parallel", "2"]);
  }
}

const sources = ["CMakeLists.txt", "native", "kernels/cpu", "kernels/cuda"];
const addon = join(root, "build/native/Release/rlhf_kernels.node");
// `npm run build:cuda` puts the GPU's kernels into the addon, where they stay until a source of it
// changes. Nothing else waits for nvcc.
if (process.argv.includes("cuda")) {
  if (!there(process.env.RLHF_NVCC || "nvcc"))
    fail(
      "nvcc was not found. It comes with NVIDIA's CUDA toolkit (12 or newer); add its bin folder to PATH, or name it by RLHF_NVCC.",
    );
  const nvcc = process.env.RLHF_NVCC ? [`RLHF_NVCC=${process.env.RLHF_NVCC}`] : [];
  step("cuda", {
    sources,
    makes: addon,
    run: () => compile("build/native", "RLHF_CUDA=ON", `RLHF_FATBINS=${root}/build/cuda`, ...nvcc),
  });
  keep("native", sources);
}
step("native", {
  sources,
  makes: addon,
  run() {
    rmSync(stampOf("cuda"), { force: true });
    compile("build/native", "RLHF_CUDA=OFF");
  },
});

// For the tests: the addon with a simulated GPU, and the tests of the simulator.
if (process.argv.includes("test"))
  step("simulator", {
    sources: [
      ...sources,
      "test/native/simt.cc",
      "test/native/simt_hopper.cc",
      "test/native/check.h",
      "test/native/fake",
    ],
    makes: join(root, "build/simulator/Release/rlhf_kernels.node"),
    run: () => compile("build/simulator", "RLHF_SIMT=ON", "RLHF_TESTS=ON"),
  });

if (cloned)
  step("typescript", {
    sources: ["tsconfig.json", "package-lock.json", "lib", "test", "bench"],
    makes: join(root, "dist/lib/index.js"),
    run: () => execute(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "tsconfig.json"]),
  });

// For the documentation: its tools.
if (process.argv.includes("docs")) packages("docs", "docs");
