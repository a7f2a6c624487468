// llama.cpp, prebuilt by node-llama-cpp: decoding one sequence. It is asked as serve.py says.
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { getLlama } from "node-llama-cpp";
import { gguf } from "./gguf.mjs";

const threads = Number(process.argv[2]);
const llama = await getLlama({
  gpu: false,
  build: "never",
  skipDownload: true,
  maxThreads: threads,
  logLevel: "error",
});

const status = (key) =>
  Number(readFileSync("/proc/self/status", "utf8").match(new RegExp(`${key}:\\s+(\\d+)`))[1]) * 1024;
let [before, most, work, model] = [0, 0, undefined, undefined];

async function prepare({ name, sizes }) {
  if (name !== "decode") return [];
  const { prompt, response, vocabulary, half } = sizes;
  before = status("VmRSS");
  most = 0;
  model = await llama.loadModel({ modelPath: gguf(sizes) });
  const context = await model.createContext({ contextSize: prompt + response, sequences: 1, threads });
  const sequence = context.getSequence();
  const tokens = Array.from({ length: prompt }, (_, i) => 1 + ((i * 7919) % (vocabulary - 1)));
  work = async () => {
    await sequence.clearHistory();
    let left = response;
    for await (const _ of sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })) if (--left === 0) break;
    if (left > 0) throw new Error(`${response - left} of ${response} tokens were generated`);
  };
  return [`llama.cpp ${half ? "f16" : "f32"}`];
}

async function run(runs) {
  writeFileSync("/proc/self/clear_refs", "5");
  const start = performance.now();
  for (let i = 0; i < runs; i++) await work();
  const ms = performance.now() - start;
  most = Math.max(most, status("VmHWM") - before);
  return ms.toFixed(6);
}

async function release() {
  await model?.dispose();
  model = work = undefined;
  return "released";
}

console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const [command, , runs] = line.split(" ");
  if (command === "prepare") console.log(JSON.stringify(await prepare(JSON.parse(line.slice(8)))));
  else if (command === "run") console.log(await run(Number(runs)));
  else if (command === "bytes") console.log(Math.max(0, most));
  else console.log(await release());
}
process.exit();
