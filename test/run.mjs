// The tests: the native ones, again under the sanitizers that RLHF_SANITIZE names and on the
// machines of RLHF_MACHINES, emulated, those of the simulated GPU, the C interface by libFuzzer,
// then jest. Ends with one line of counts.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { machine as here } from "node:os";
import { join, relative } from "node:path";

const counts = { passed: 0, failed: 0 };

function run(command, args, options = {}) {
  return spawnSync(command, args, { encoding: "utf8", maxBuffer: 1 << 28, ...options });
}

/** Builds a folder by CMake alone. */
function built(folder, options, ...target) {
  for (const args of [
    ["-S", ".", "-B", folder, ...options],
    ["--build", folder, "--parallel", "2", ...target],
  ]) {
    const { status, stdout, stderr } = run("cmake", args);
    if (status === 0) continue;
    console.log(`${stdout}${stderr}`);
    counts.failed++;
    return false;
  }
  return true;
}

// Every native test program: as it is, under a set of sanitizers, or for another machine that is emulated here.
function native({ sanitize = "", machine = "" } = {}) {
  const folder = ["build/test", ...sanitize.split(",").filter(Boolean), machine].filter(Boolean).join("-");
  const cross = [
    "SYSTEM_NAME=Linux",
    `SYSTEM_PROCESSOR=${machine}`,
    `C_COMPILER=${machine}-linux-gnu-gcc`,
    `CXX_COMPILER=${machine}-linux-gnu-g++`,
  ];
  const options = [
    "-DRLHF_TESTS=ON",
    ...(sanitize ? [`-DRLHF_SANITIZE=${sanitize}`] : []),
    ...(machine ? cross.map((option) => `-DCMAKE_${option}`) : []),
  ];
  if (built(folder, options))
    programs(
      folder,
      sanitize || machine || "native",
      machine ? [`qemu-${machine}`, "-L", `/usr/${machine}-linux-gnu`] : [],
    );
}

function programs(folder, kind, emulator = []) {
  for (const name of readdirSync(folder)
    .filter((file) => /^test_\w+$/.test(file))
    .sort()) {
    const environment = {
      ...process.env,
      TSAN_OPTIONS: "halt_on_error=1",
      ASAN_OPTIONS: "detect_leaks=1",
      UBSAN_OPTIONS: "print_stacktrace=1",
    };
    const [command, ...args] = [...emulator, join(folder, name)];
    const { status, stdout, stderr } = run(command, args, { env: environment });
    const ok = status === 0;
    counts[ok ? "passed" : "failed"]++;
    console.log(`${ok ? "ok" : "FAILED"} ${kind} ${name}: ${stdout.trim().split("\n").at(-1)}`);
    if (!ok) console.log(`${stdout}${stderr}`);
  }
}

/**
 * Calls of the C interface from whatever bytes reach new code: 50 times RLHF_FUZZ_RUNS (200), from
 * calls that are as they should be.
 */
function fuzz() {
  const { status, stdout } = run("clang++", ["-print-runtime-dir"]);
  const runtime = stdout?.trim() ?? "";
  if (status !== 0 || !existsSync(runtime) || !readdirSync(runtime).some((name) => name.includes("fuzzer")))
    return console.log(
      "not run: the fuzzing of the C interface, which wants clang with libFuzzer (.ci/fuzz.sh installs it on Debian)",
    );
  const [folder, corpus] = ["build/fuzz", "build/fuzz/corpus"];
  if (
    !built(
      folder,
      ["-DRLHF_FUZZ=ON", "-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"],
      "--target",
      "fuzz_calls",
    )
  )
    return;
  rmSync(corpus, { recursive: true, force: true });
  mkdirSync(corpus);
  // the op, no change, then what makes its arguments
  const seed = process.env.RLHF_TEST_SEED ?? String(Date.now() % 1e9);
  const bytes = (op) => createHash("shake256", { outputLength: 200 }).update(`${seed} ${op}`).digest();
  for (let op = 0; op < 256; op++)
    writeFileSync(join(corpus, `${op}`), Buffer.concat([Buffer.of(op, 0, 0, 0), bytes(op)]));
  const runs = 50 * Number(process.env.RLHF_FUZZ_RUNS ?? 200);
  const { status: code, stderr } = run(join(folder, "fuzz_calls"), [
    `-seed=${seed}`,
    `-runs=${runs}`,
    "-max_len=512",
    "-timeout=20",
    `-artifact_prefix=${folder}/`,
    corpus,
  ]);
  counts[code === 0 ? "passed" : "failed"]++;
  const reached = [...stderr.matchAll(/cov: (\d+)/g)].at(-1)?.[1];
  console.log(`${code === 0 ? "ok" : "FAILED"} fuzz calls: ${runs} inputs reached ${reached} edges (seed ${seed})`);
  if (code !== 0) console.log(stderr);
}

const only = process.argv.slice(2);
if (only.length === 0) {
  const words = (name) => (process.env[name] ?? "").split(" ").filter(Boolean);
  native();
  for (const sanitize of words("RLHF_SANITIZE")) native({ sanitize });
  // this machine's own are those above
  for (const other of words("RLHF_MACHINES")) if (other !== here()) native({ machine: other });
  programs("build/simulator", "simulator"); // made by the set-up
  fuzz();
}

mkdirSync("build", { recursive: true });
const report = "build/jest.json";
const jest = run(
  process.execPath,
  [
    "--experimental-vm-modules",
    "--no-warnings",
    "node_modules/jest/bin/jest.js",
    "--json",
    `--outputFile=${report}`,
    ...only,
  ],
  { stdio: ["ignore", "inherit", "inherit"] },
);
if (existsSync(report)) {
  const { numPassedTests, numFailedTests, numFailedTestSuites, testResults } = JSON.parse(readFileSync(report, "utf8"));
  counts.passed += numPassedTests;
  counts.failed += numFailedTests + (numFailedTests === 0 ? numFailedTestSuites : 0);
  if (testResults.length === 0) counts.failed++;
  for (const { name, assertionResults } of testResults) {
    const skipped = assertionResults.filter(({ status }) => status === "pending");
    if (skipped.length > 0)
      console.log(
        `not run, for what it says above: ${skipped.length} of ${relative("dist", name)}, "${skipped[0].title}"`,
      );
  }
}
if (jest.status !== 0 && counts.failed === 0) counts.failed++;

console.log(`${counts.passed} passed, ${counts.failed} failed`);
process.exit(counts.failed === 0 ? 0 : 1);
