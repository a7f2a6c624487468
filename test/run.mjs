// The tests: the native ones, again under the sanitizers that RLHF_SANITIZE names and on the machines of RLHF_MACHINES, emulated, those of the simulated GPU, then jest. Ends with one line of counts.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { machine as here } from "node:os";
import { join, relative } from "node:path";

const counts = { passed: 0, failed: 0 };

function run(command, args, options = {}) {
  return spawnSync(command, args, { encoding: "utf8", maxBuffer: 1 << 28, ...options });
}

// Every native test program, built by CMake alone: as it is, under a set of sanitizers, or for another machine that is emulated here.
function native({ sanitize = "", machine = "" } = {}) {
  const folder = ["build/test", ...sanitize.split(",").filter(Boolean), machine].filter(Boolean).join("-");
  const cross = ["SYSTEM_NAME=Linux", `SYSTEM_PROCESSOR=${machine}`, `C_COMPILER=${machine}-linux-gnu-gcc`, `CXX_COMPILER=${machine}-linux-gnu-g++`];
  const options = ["-DRLHF_TESTS=ON", ...(sanitize ? [`-DRLHF_SANITIZE=${sanitize}`] : []), ...(machine ? cross.map((option) => `-DCMAKE_${option}`) : [])];
  for (const args of [
    ["-S", ".", "-B", folder, ...options],
    ["--build", folder, "--parallel", "2"],
  ]) {
    const { status, stdout, stderr } = run("cmake", args);
    if (status === 0) continue;
    console.log(`${stdout}${stderr}`);
    counts.failed++;
    return;
  }
  programs(folder, sanitize || machine || "native", machine ? [`qemu-${machine}`, "-L", `/usr/${machine}-linux-gnu`] : []);
}

function programs(folder, kind, emulator = []) {
  for (const name of readdirSync(folder)
    .filter((file) => /^test_\w+$/.test(file))
    .sort()) {
    const environment = { ...process.env, TSAN_OPTIONS: "halt_on_error=1", ASAN_OPTIONS: "detect_leaks=1", UBSAN_OPTIONS: "print_stacktrace=1" };
    const [command, ...args] = [...emulator, join(folder, name)];
    const { status, stdout, stderr } = run(command, args, { env: environment });
    const ok = status === 0;
    counts[ok ? "passed" : "failed"]++;
    console.log(`${ok ? "ok" : "FAILED"} ${kind} ${name}: ${stdout.trim().split("\n").at(-1)}`);
    if (!ok) console.log(`${stdout}${stderr}`);
  }
}

const only = process.argv.slice(2);
if (only.length === 0) {
  const words = (name) => (process.env[name] ?? "").split(" ").filter(Boolean);
  native();
  for (const sanitize of words("RLHF_SANITIZE")) native({ sanitize });
  // this machine's own are those above
  for (const other of words("RLHF_MACHINES")) if (other !== here()) native({ machine: other });
  programs("build/simulator", "simulator"); // made by the set-up
}

mkdirSync("build", { recursive: true });
const report = "build/jest.json";
const jest = run(
  process.execPath,
  ["--experimental-vm-modules", "--no-warnings", "node_modules/jest/bin/jest.js", "--json", `--outputFile=${report}`, ...only],
  { stdio: ["ignore", "inherit", "inherit"] },
);
if (existsSync(report)) {
  const { numPassedTests, numFailedTests, numFailedTestSuites, testResults } = JSON.parse(readFileSync(report, "utf8"));
  counts.passed += numPassedTests;
  counts.failed += numFailedTests + (numFailedTests === 0 ? numFailedTestSuites : 0);
  if (testResults.length === 0) counts.failed++;
  for (const { name, assertionResults } of testResults) {
    const skipped = assertionResults.filter(({ status }) => status === "pending");
    if (skipped.length > 0) console.log(`not run, for what it says above: ${skipped.length} of ${relative("dist", name)}, "${skipped[0].title}"`);
  }
}
if (jest.status !== 0 && counts.failed === 0) counts.failed++;

console.log(`${counts.passed} passed, ${counts.failed} failed`);
process.exit(counts.failed === 0 ? 0 : 1);
