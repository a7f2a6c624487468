"""How a peer is asked: one line asks, one line answers.

prepare {"name", "shape"}   ->  the names of the implementations that it has of this row, as a JSON list, or why it has none, as a string; a row with a
                                whole model has "sizes" too
run I N                     ->  milliseconds of N runs of implementation I, one after another
bytes I                     ->  bytes that the process held at most while I ran, beyond what it held before the row was prepared
release                     ->  "released": what the row held is given back
"""
import ctypes
import gc
import json
import os
import re
import resource
import sys
import tempfile
import time
import warnings

THREADS = int(sys.argv[1])
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"rlhf-bench-inductor-{THREADS}")  # what is compiled knows its threads
warnings.filterwarnings("ignore")


def numbers(shape):
    return [int(n) for n in re.findall(r"\d+", shape)]


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) * 1024


def serve(rows):
    """rows: name -> function of the shape, or of the sizes where there are, that prepares [(name of the implementation, one run of it), ...]"""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    works, most, before = [], [], 0
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        if command == "prepare":
            row = json.loads(rest)
            before = resident()
            works, failure = [], None
            try:
                if row["name"] in rows:
                    works = rows[row["name"]](row.get("sizes") or row["shape"])
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
            most = [0] * len(works)
            answer = json.dumps(failure or [name for name, _ in works])
        elif command == "run":
            i, runs = (int(n) for n in rest.split())
            work = works[i][1]
            reset_peak()
            start = time.perf_counter()
            for _ in range(runs):
                work()
            answer = f"{1000 * (time.perf_counter() - start):.6f}"
            most[i] = max(most[i], peak() - before)
        elif command == "bytes":
            answer = str(most[int(rest)])
        else:
            works = []
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            answer = "released"
        print(answer, file=answers, flush=True)
