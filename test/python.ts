import { spawnSync } from "node:child_process";

/**
 * The first Python of RLHF_PEER_PYTHON, one or several with colons between them, that has a package
 * of test/fixtures/requirements.txt. Without one it says what is not run, and why.
 */
export function peerPython(module: string, what: string): string | undefined {
  const given = process.env.RLHF_PEER_PYTHON;
  const found = given?.split(":").find((python) => spawnSync(python, ["-c", `import ${module}`]).status === 0);
  if (!found)
    console.warn(
      `skipped: ${what}, for RLHF_PEER_PYTHON ${given ? `(${given}) names no Python that has ${module}` : "is not set"}`,
    );
  return found;
}
