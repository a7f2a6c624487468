"""A receipt of the CUDA kernels: what holds on this GPU, and how fast it is.

    python3 bench/receipt/receipt.py --out bench/results/cuda-h200.json [--only REGEX] [--seconds S]

Needs a GPU with its driver, nvcc, CMake, a C++ compiler and Python with torch; neither Node nor a network. It builds the library, holds every op to
its formula in f64 (checks.py), then times it against what people use and the device's own limits (timings.py). Rows are written as they come, and
a second run with another --only adds to the file as long as the kernels and the device are the same.
--library PATH --device simt runs the checks on a library whose device is simulated, with tensors in torch's CPU memory; --device cpu those ops
that this machine's processor has. --ordinal picks the GPU: simulated, those from 90 on are Hoppers.

The file:
  kernels    SHA-256 over kernels/cuda: of each file in the order of names "<name>\\n<bytes>\\n". Another hash than the sources' means: not yet verified on a GPU.
  device     name, capability, memory, driver, torch, nvcc
  limits     measured in the same run: TFLOP/s of a bf16 product by cuBLAS, GB/s of a copy (bytes read plus written)
  checks     [{op, case, dtype, output, error, largest, of_allowed, same_bits_twice, same_bits_in_batch?, holds}], or {op, case, dtype, failed}
  unchecked  ops of the device that no check names
  timings    [{op, shape, dtype, ms, spread, limit_ms, of_limit, workspace_bytes, peers: {name: {ms, spread, extra_bytes, faster} or {failed}}}]
  failed     rows that do not hold, in words; a receipt is good if this is empty
An op is verified at a dtype where `kernels` is the sources' hash, it has checks at that dtype, and all of them hold.
"""
import argparse
import hashlib
import json
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
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            total.update(name.encode() + b"\n" + file.read() + b"\n")
    return total.hexdigest()


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
        self.made = {"kernels": kernels_hash(), "device": device, "limits": {}, "checks": [], "unchecked": [], "timings": [], "failed": []}
        if path and os.path.exists(path):
            with open(path) as file:
                before = json.load(file)
            if all(before.get(k) == self.made[k] for k in ("kernels", "device")):
                self.made = before

    def put(self, part, keys, row):
        same = lambda other: all(other.get(k) == row.get(k) for k in keys)
        self.made[part] = [other for other in self.made[part] if not same(other)] + [row]
        self.write()

    def write(self):
        says = lambda row: row.get("failed") or f"{row['output']}: {row['of_allowed']:.3g} of the allowed error" + "".join(
            f", not the same bits {k[10:]}" for k in ("same_bits_twice", "same_bits_in_batch") if row.get(k) is False)
        self.made["failed"] = [f"{row['op']} ({row['case']}, {row['dtype']}): {says(row)}" for row in self.made["checks"] if not row.get("holds")] + [
            f"{row['op']} ({row['shape']}): {row['failed']}" for row in self.made["timings"] if row.get("failed")]
        if self.path:
            with open(self.path + ".new", "w") as file:
                json.dump(self.made, file, indent=1)
            os.replace(self.path + ".new", self.path)


def run_checks(receipt, library, only, seed, dtypes, until):
    keys = ("op", "case", "dtype", "output")
    for dtype in dtypes:
        for case in checks.all_cases(library.device, seed, dtype):
            name = str(dtype).removeprefix("torch.")
            if not library.has(case.op) or not re.search(only, f"check {case.op} {case.name} {name}"):
                continue
            if time.monotonic() > until:
                print("out of time: checks are left")
                return
            about = {"op": case.op, "case": case.name, "dtype": name}
            try:
                for row in checks.check(library, case, dtype):
                    receipt.put("checks", keys, about | row)
                    if not row["holds"]:
                        print("FAILED", about | row, flush=True)
            except native.Refused as refusal:
                if "not available" in str(refusal):
                    continue  # this device lacks the op
                receipt.put("checks", keys, about | {"failed": str(refusal)})
                print("FAILED", about, refusal, flush=True)
            except Exception as error:  # a broken op must not hide the others
                receipt.put("checks", keys, about | {"failed": f"{type(error).__name__}: {error}"})
                print("FAILED", about, repr(error), flush=True)


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
    run_checks(receipt, library, options.only, options.seed, [torch.float32] + ([] if options.device == "cpu" else [torch.bfloat16]), until)
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
