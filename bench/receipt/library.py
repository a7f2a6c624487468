"""The C interface of rlhf-kernels from Python: what an op takes is read from the library's own list, once.

    library = Library(path, torch.device("cuda"))
    out = library.run("attention", q=q, k=k, v=v, cu_seqlens=cu, scale=0.125)     # {"o": ..., "lse": ...}
"""
import ctypes
import json
import os
import subprocess

import torch

DTYPES = {torch.float32: 0, torch.float64: 1, torch.int32: 2, torch.bfloat16: 3}
TYPES = {"F32": torch.float32, "F64": torch.float64, "I32": torch.int32}
STATUS = {1: "bad argument", 2: "bad id", 3: "bad offsets", 4: "bad workspace"}


class CTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("layout", ctypes.c_int32), ("rank", ctypes.c_int32), ("reserved", ctypes.c_int32),
                ("dims", ctypes.c_int64 * 4), ("stride", ctypes.c_int64)]


def build(root, folder):
    """The library with its device code, by CMake alone; returns its path."""
    subprocess.run(["cmake", "-S", root, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DRLHF_CUDA=ON"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder, "--target", "rlhf_shared", "-j", str(os.cpu_count())], check=True, stdout=subprocess.DEVNULL)
    return os.path.join(folder, "librlhf_kernels.so")


class Refused(Exception):
    """A status other than 0, with the library's words."""

    def __init__(self, status, message):
        super().__init__(f"{STATUS.get(status, status)}: {message}")
        self.status = status


class Library:
    def __init__(self, path, device, isa="cuda", ordinal=0):
        self.c = ctypes.CDLL(path)
        self.device = device
        self.c.rlhf_ops_json.restype = ctypes.c_char_p
        listed = json.loads(self.c.rlhf_ops_json())
        if listed["abi"] != 1:
            raise RuntimeError(f"{path} has version {listed['abi']} of the C interface, wanted 1")
        self.kind = "cuda" if isa == "cuda" else "cpu"
        self.ops = {op["name"]: op for op in listed["ops"] if op[self.kind]}
        self.choices = listed["choices"]
        self.stream = self._open(isa, ordinal)
        self.c.rlhf_message.restype = ctypes.c_char_p
        self.c.rlhf_message.argtypes = [ctypes.c_void_p]
        self.workspace = torch.empty(0, dtype=torch.uint8, device=device)
        self.workspace_bytes = 0  # of the last call

    def _open(self, isa, ordinal):
        if isa == "cuda":  # on torch's own stream, so that calls and torch's work keep their order
            why, current = ctypes.create_string_buffer(256), None
            if self.device.type == "cuda":
                current = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self.c.rlhf_cuda_stream_create.restype = ctypes.c_void_p
            stream = self.c.rlhf_cuda_stream_create(ordinal, current, why, ctypes.c_int64(len(why)))
        else:
            why = ctypes.create_string_buffer(b"the library has no such device")
            self.c.rlhf_stream_create.restype = ctypes.c_void_p
            stream = self.c.rlhf_stream_create(isa and isa.encode(), 0)
        if not stream:
            raise RuntimeError(f"{isa}: {why.value.decode()}")
        return ctypes.c_void_p(stream)

    def has(self, op):
        return op in self.ops

    def takes(self, op, dtype):
        """Whether all of the op's narrow tensors may be so; a CPU takes bf16 for weights alone."""
        return self.has(op) and (dtype == torch.float32 or (self.kind == "cuda" and "bf16" in self.ops[op]["cuda"]))

    def run(self, op, sizes=None, **given):
        """Outputs by name. A tensor that the op adds to is copied first; an optional output is made where it is given as True, and one that may
        have either dtype in the one that is given."""
        return self.prepare(op, sizes, **given)()

    def prepare(self, op, sizes=None, in_place=False, **given):
        """A function that makes one call on fixed memory, for timing."""
        arguments = self.ops[op]["arguments"]
        size = dict(sizes or {})
        rows = torch.float32  # the dtype of ROWS and WEIGHT, which SAME follows
        for a in arguments:
            x = given.get(a["name"])
            if not isinstance(x, torch.Tensor):
                continue
            if a["type"] in ("ROWS", "WEIGHT"):
                rows = x.dtype
            if a["dims"] == "...":
                size["..."] = tuple(x.shape)
                continue
            for dim, n in zip(a["dims"].split(","), x.shape):
                if not dim[0].isdigit():
                    size.setdefault(dim[0], n - (1 if dim.endswith("+1") else 0))
        results, values, kept = {}, [], []
        for a in arguments:
            kind, x = a["kind"], given.get(a["name"])
            if kind == "real":
                values.append(ctypes.c_double(x))
            elif kind == "integer":
                values.append(ctypes.c_int64(x))
            elif kind == "choice":
                values.append(ctypes.c_int64(self.choices[a["type"]].index(x)))
            else:
                if kind in ("out", "opt_out"):
                    x = self._empty(a, size, x if isinstance(x, torch.dtype) else rows) if kind == "out" or x is True else None
                elif kind in ("add", "opt_add") and x is not None and not in_place:
                    x = x.clone()
                if kind in ("out", "opt_out", "add", "opt_add") and x is not None:
                    results[a["name"]] = x
                values.append(None if x is None else self._tensor(x, kept))
        unknown = set(given) - {a["name"] for a in arguments}
        if unknown:
            raise TypeError(f"{op} takes no {unknown}")
        ask, call = getattr(self.c, f"rlhf_{op}_workspace"), getattr(self.c, f"rlhf_{op}")
        ask.restype = ctypes.c_int64
        bytes_ = ask(*values, self.stream)
        if bytes_ < 0:
            self._raise(1)
        self.workspace_bytes = bytes_
        if self.workspace.numel() < bytes_:
            self.workspace = None
            self.workspace = torch.empty(bytes_, dtype=torch.uint8, device=self.device)
        workspace = self.workspace

        def once():
            status = call(self.stream, *values, ctypes.c_void_p(workspace.data_ptr()), ctypes.c_int64(bytes_))
            if status:
                self._raise(status)
            return results

        once.kept = (kept, given)  # what the pointers point to lives as long as the function
        return once

    def release(self):
        """Gives back the workspace, which grows with the largest call."""
        self.workspace = torch.empty(0, dtype=torch.uint8, device=self.device)

    def wait(self):
        """Until all work is done; raises what a kernel met."""
        status = self.c.rlhf_stream_wait(self.stream)
        if status:
            self._raise(status)

    def _raise(self, status):
        raise Refused(status, (self.c.rlhf_message(self.stream) or b"").decode())

    def _empty(self, a, size, narrow):
        dtype = narrow if a["type"] in ("SAME", "EITHER") else TYPES[a["type"]]
        shape = size["..."] if a["dims"] == "..." else [int(d) if d.isdigit() else size[d[0]] + (1 if d.endswith("+1") else 0) for d in a["dims"].split(",")]
        return torch.full(tuple(shape), float("nan") if dtype.is_floating_point else -1, dtype=dtype, device=self.device)

    def _tensor(self, x, kept):
        inner = 1
        for n in x.shape[1:]:
            inner *= n
        t = CTensor(x.data_ptr(), DTYPES[x.dtype], 0, x.dim(), 0)
        for i, n in enumerate(x.shape):
            t.dims[i] = n
        t.stride = x.stride(0) if x.dim() and x.shape[0] > 1 and x.numel() else inner
        kept += [t, x]
        return ctypes.byref(t)
