// The tests: the native ones, again under the sanitizers where RLHF_SANITIZE names them, those of the simulated GPU, then jest. Ends with one line of counts.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const counts = { passed: 0, failed: 0 };

function run(command, args, options = {}) {
  return spawnSync(command, args, { encoding: "utf8", maxBuffer: 1 << 28, ...options });
}

// Every native test program, built by CMake alone, and again under each set of sanitizers.
function native(sanitize) {
  const folder = `build/test${sanitize ? `-${sanitize.replaceAll(",", "-")}` : ""}`;
  const configure = ["-S", ".", "-B", folder, "-DRLHF_TESTS=ON", ...(sanitize ? [`-DRLHF_SANITIZE=${sanitize}`] : [])];
  for (const args of [configure, ["--build", folder, "--parallel", "2"]]) {
    const { status, stdout, stderr } = run("cmake", args);
    if (status === 0) continue;
    console.log(`${stdout}${stderr}`);
    counts.failed++;
    return;
  }
  programs(folder, sanitize || "native");
}

function programs(folder, kind) {
  for (const name of readdirSync(folder)
    .filter((file) => /^test_\w+$/.test(file))
    .sort()) {
    const environment = { ...process.env, TSAN_OPTIONS: "halt_on_error=1", ASAN_OPTIONS: "detect_leaks=1", UBSAN_OPTIONS: "print_stacktrace=1" };
    const { status, stdout, stderr } = run(join(folder, name), [], { env: environment });
    const ok = status === 0;
    counts[ok ? "passed" : "failed"]++;
    console.log(`${ok ? "ok" : "FAILED"} ${kind} ${name}: ${stdout.trim().split("\n").at(-1)}`);
    if (!ok) console.log(`${stdout}${stderr}`);
  }
}

const only = process.argv.slice(2);
if (only.length === 0) {
  for (const sanitize of ["", ...(process.env.RLHF_SANITIZE ?? "").split(" ").filter(Boolean)]) native(sanitize);
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
}
if (jest.status !== 0 && counts.failed === 0) counts.failed++;

console.log(`${counts.passed} passed, ${counts.failed} failed`);
process.exit(counts.failed === 0 ? 0 : 1);
