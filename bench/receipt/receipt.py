"""A receipt of the CUDA kernels: what holds on this GPU, and how fast it is.

    python3 bench/receipt/receipt.py --out bench/results/cuda-h200.json [--only REGEX] [--seconds S]

Needs a GPU with its driver, nvcc, CMake, a C++ compiler and Python with torch; neither Node nor a network. It builds the library, holds every op to
its formula in f64 (checks.py), then times it against what people use and the device's own limits (timings.py). Rows are written as they come, and
a second run with another --only adds to the file as long as the kernels and the device are the same.
--library PATH --device simt runs the checks on a library whose device is simulated, with tensors in torch's CPU memory; --device cpu those ops
that this machine's processor has. --ordinal picks the GPU: simulated, those from 90 on are Hoppers.

The file:
  kernels    SHA-256 over kernels/cuda, native/cuda/driver.cc and native/cuda/fatbin.cmake: of each file in the order of names, those of the folder
             first, "<name>\\n<bytes>\\n". Another hash than the sources' means: not yet verified on a GPU.
  device     name, capability, memory, driver, torch, nvcc
  limits     measured in the same run: TFLOP/s of a bf16 product by cuBLAS, GB/s of a copy (bytes read plus written)
  checks     [{op, case, dtype, output, error, largest, of_allowed, same_bits_twice, same_bits_in_batch?, holds}], or {op, case, dtype, failed}
             a number that is not finite stands there in words, "nan" or "inf"
  wanted     {op: {dtype: [case]}}: all that there are to check
  unchecked  ops of the device that no check names
  timings    [{op, shape, dtype, ms, spread, limit_ms, of_limit, workspace_bytes, peers: {name: {ms, spread, extra_bytes, faster} or {failed}}}]
  failed     rows that do not hold, in words; a receipt is good if this is empty
An op is verified at a dtype where `kernels` is the sources' hash, and each of the cases that are wanted there has checks, all of which hold.
"""
import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import checks
import library as native


def kernels_hash():
    total = hashlib.sha256()
    folder = os.path.join(ROOT, "kernels/cuda")
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    for path in paths + [os.path.join(ROOT, "native/cuda", name) for name in ("driver.cc", "fatbin.cmake")]:
        with open(path, "rb") as file:
            total.update(os.path.basename(path).encode() + b"\n" + file.read() + b"\n")
    return total.hexdigest()


def in_words(x):
    """x as JSON has it, which knows no NaN and no infinity"""
    if isinstance(x, dict):
        return {k: in_words(v) for k, v in x.items()}
    if isinstance(x, list):
        return [in_words(v) for v in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def words(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def describe(kind, ordinal):
    if kind != "cuda":
        return {"name": f"{kind} {ordinal}", "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(ordinal)
    driver = words("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {"name": properties.name, "capability": f"{properties.major}.{properties.minor}", "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count, "driver": driver[0] if driver else None, "torch": torch.__version__,
            "cuda": torch.version.cuda, "nvcc": (words("nvcc", "--version") or [None])[-1]}


class Receipt:
    """Rows by their key, on disk after each."""

    def __init__(self, path, device):
        self.path = path
        self.made = {"kernels": kernels_hash(), "device": device, "limits": {}, "checks": [], "wanted": {}, "unchecked": [], "timings": [], "failed": []}
        if path and os.path.exists(path):
            with open(path) as file:
                before = json.load(file)
            if all(before.get(k) == self.made[k] for k in ("kernels", "device")):
                self.made = before

    def put(self, part, about, rows):
        """the rows about something, in place of those that were there"""
        same = lambda other: all(other.get(k) == x for k, x in about.items())
        self.made[part] = [other for other in self.made[part] if not same(other)] + [about | row for row in rows]
        self.write()

    def want(self, op, case, dtype):
        cases = self.made["wanted"].setdefault(op, {}).setdefault(dtype, [])
        if case not in cases:
            cases.append(case)

    def write(self):
        says = lambda row: row.get("failed") or f"{row['output']}: {float(row['of_allowed']):.3g} of the allowed error" + "".join(
            f", not the same bits {k[10:]}" for k in ("same_bits_twice", "same_bits_in_batch") if row.get(k) is False)
        self.made["failed"] = [f"{row['op']} ({row['case']}, {row['dtype']}): {says(row)}" for row in self.made["checks"] if not row.get("holds")] + [
            f"{row['op']} ({row['shape']}): {row['failed']}" for row in self.made["timings"] if row.get("failed")]
        if self.path:
            with open(self.path + ".new", "w") as file:
                json.dump(in_words(self.made), file, indent=1, allow_nan=False)
            os.replace(self.path + ".new", self.path)


def run_checks(receipt, library, only, seed, dtypes, large, until):
    late = False
    for dtype in dtypes:
        for case in checks.all_cases(library.device, seed, dtype, large):
            name = str(dtype).removeprefix("torch.")
            if not library.takes(case.op, dtype):
                continue
            receipt.want(case.op, case.name, name)
            if late or not re.search(only, f"check {case.op} {case.name} {name}"):
                continue
            if late := time.monotonic() > until:
                print("out of time: checks are left")
                continue
            about = {"op": case.op, "case": case.name, "dtype": name}
            try:
                rows = list(checks.check(library, case, dtype))
            except native.Refused as refusal:
                rows = [{"failed": str(refusal)}]
            except Exception as error:  # a broken op must not hide the others
                rows = [{"failed": f"{type(error).__name__}: {error}"}]
            receipt.put("checks", about, rows)
            for row in rows:
                if not row.get("holds"):
                    print("FAILED", about | row, flush=True)
    receipt.write()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="the JSON file, which is added to")
    parser.add_argument("--only", default="", help="rows whose 'check OP CASE DTYPE' or 'time OP SHAPE DTYPE' matches this regular expression")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no row after this time")
    parser.add_argument("--library", help="a library that is built already")
    parser.add_argument("--device", choices=["cuda", "simt", "cpu"], default="cuda")
    parser.add_argument("--ordinal", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    device = torch.device("cuda" if options.device == "cuda" else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if options.device == "cuda":
        torch.cuda.set_device(options.ordinal)
        torch.cuda.set_stream(torch.cuda.Stream())  # one with a handle, that the library's calls can be enqueued to
    path = options.library or native.build(ROOT, os.path.join(ROOT, "build/receipt"))
    library = native.Library(path, device, {"cuda": "cuda", "simt": "cuda"}.get(options.device), options.ordinal)
    receipt = Receipt(options.out, describe(options.device, options.ordinal))
    run_checks(receipt, library, options.only, options.seed, [torch.float32, torch.bfloat16], options.device == "cuda", until)
    named = {row["op"] for row in receipt.made["checks"]}
    receipt.made["unchecked"] = sorted(op for op in library.ops if op not in named)
    receipt.write()
    if options.device == "cuda":
        import timings

        timings.run(receipt, library, options.only, until)
    held = sum(bool(row.get("holds")) for row in receipt.made["checks"])
    print(f"{held} of {len(receipt.made['checks'])} outputs hold; {len(receipt.made['timings'])} timings; {len(receipt.made['failed'])} failed")
    for line in receipt.made["failed"]:
        print(" ", line)
    sys.exit(1 if receipt.made["failed"] else 0)


if __name__ == "__main__":
    main()
