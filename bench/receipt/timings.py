"""How fast: our kernels, what people use today, and the device's limit, interleaved, cold caches, medians of CUDA events.

A row's limit is max(FLOPs / the measured rate of a bf16 product, compulsory bytes / the measured bandwidth of a copy): causal attention counts half,
inputs and outputs once. The second-level cache is swept before every run, outside of the events.
"""
import math
import re
import time

import torch
import torch.nn.functional as F

BF16 = torch.bfloat16
SWEEP = 1 << 28  # bytes, beyond any cache
ROUNDS, SECONDS = 15, 3.0


class Clock:
    def __init__(self, device):
        self.sweep = torch.empty(SWEEP, dtype=torch.uint8, device=device)

    def once(self, work):
        self.sweep.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def extra_bytes(self, work):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made = work()
        torch.cuda.synchronize()
        del made
        return torch.cuda.max_memory_allocated() - before


def median(times):
    times = sorted(times)
    at = lambda share: times[round(share * (len(times) - 1))]
    return {"ms": at(0.5), "spread": (at(0.9) - at(0.1)) / at(0.5)}


def interleaved(clock, works):
    """{name: work} in turns, after two warm-ups of each; what fails says so."""
    times, result = {}, {}
    for name, work in works.items():
        try:
            work()  # what it makes once, it has
            bytes_ = clock.extra_bytes(work)
            clock.once(work)
            times[name], result[name] = [], {"extra_bytes": bytes_}
        except Exception as error:
            result[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
            torch.cuda.empty_cache()
    start = time.monotonic()
    for round_ in range(ROUNDS):
        if round_ >= 3 and time.monotonic() - start > SECONDS * max(1, len(times)):
            break
        for name in times:
            times[name].append(clock.once(works[name]))
    for name, all_ in times.items():
        result[name] |= median(all_)
    return result


# ---- rows: (op, shape, dtype, FLOPs, bytes, our call's arguments, peers)


class Row:
    def __init__(self, op, shape, flops, bytes_, prepare, dtype="bfloat16"):
        self.op, self.shape, self.flops, self.bytes, self.prepare, self.dtype = op, shape, flops, bytes_, prepare, dtype


def attention_rows(device, B, T, H, G, D):
    shape = f"B {B}, T {T}, H {H}, G {G}, D {D}"
    pairs, tensors = B * T * (T + 1) / 2, 2 * B * T * (2 * H + 2 * G) * D

    def prepare(backward):
        draw = lambda heads: torch.randn(B, T, heads, D, device=device, dtype=BF16)
        q, k, v, d_o = draw(H), draw(G), draw(G), draw(H)
        flat = lambda x: x.flatten(0, 1)
        cu = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=device)
        ours = dict(q=flat(q), k=flat(k), v=flat(v), cu_seqlens=cu, scale=D**-0.5)
        if backward:
            ours |= dict(o=torch.randn_like(flat(q)), lse=torch.full((B * T, H), math.log(T) + 0.5, device=device), d_o=flat(d_o))
        names = ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"] + (["MATH"] if B * H * T * T * 2 <= 1 << 34 else [])
        return ours, {f"SDPA {name.split('_')[0].lower()}": sdpa(name, q, k, v, d_o, backward) for name in names}

    yield Row("attention", shape, 4 * D * H * pairs, tensors + 4 * B * T * H, lambda: prepare(False))
    yield Row("attention_grad", shape, 10 * D * H * pairs, 2 * tensors + 4 * B * T * H, lambda: prepare(True))


def sdpa(name, q, k, v, d_o, backward):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    H, G = q.shape[2], k.shape[2]
    repeat = lambda x: x if G == H or name in ("FLASH_ATTENTION", "CUDNN_ATTENTION") else x.repeat_interleave(H // G, 2)
    q, k, v, d_o = (x.transpose(1, 2).detach().requires_grad_(backward) for x in (q, repeat(k), repeat(v), d_o))
    kept = []

    def forward():
        with sdpa_kernel(getattr(SDPBackend, name)):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])

    def back():
        if not kept:
            kept.append(forward())
        return torch.autograd.grad(kept[0], (q, k, v), d_o, retain_graph=True)

    return back if backward else forward


def torch_logp(h, w, y):
    return torch.log_softmax(F.linear(h, w).float(), -1).gather(1, y.long()[:, None])[:, 0]


def compiled(f):
    """torch.compile at the first call, so that a failure is the row's own"""
    made = []

    def work(*args):
        if not made:
            made.append(torch.compile(f))
        return made[0](*args)

    return work


def chunks(f, n, *tensors):
    return [f(*(t[i : i + n] for t in tensors)) for i in range(0, len(tensors[0]), n)]


def chunked_logp(logp, h, w, y, n=1024):
    return torch.cat(chunks(lambda a, b: logp(a, w, b), n, h, y))


def chunked_grad(loss, h, w, rest, n=1024):
    """gradients for h and w, chunk by chunk, so that only a chunk's logits are there"""
    a, b = h.detach().requires_grad_(), w.detach().requires_grad_()
    dw, dh = torch.zeros_like(w, dtype=torch.float32), torch.empty_like(h)
    for i in range(0, len(h), n):
        part = loss(a[i : i + n], b, *(t[i : i + n] for t in rest))
        one, other = torch.autograd.grad(part, (a, b))
        dh[i : i + n] = one[i : i + n]
        dw += other
    return dh, dw


def ppo(h, w, y, old, adv):
    ratio = (torch_logp(h, w, y) - old).exp()
    return torch.max(-adv * ratio, -adv * ratio.clamp(0.8, 1.28)).sum() / 8192


def weighted(h, w, y, dlogp):
    return (torch_logp(h, w, y) * dlogp).sum()


LOSS = dict(objective="clipped_ratio", clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=math.inf, log_ratio_clamp=20, aggregation="token_mean", kl_coef=0,
            estimator="k3", entropy_coef=0, scale=1)


def liger():
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as fused
    except ImportError:
        return None
    return fused


def head_rows(device, M, C, V):
    shape, product, inputs = f"M {M}, C {C}, V {V}", 2 * M * C * V, 2 * (M * C + V * C)

    def draw():
        h, w = torch.randn(M, C, device=device, dtype=BF16), (torch.randn(V, C, device=device) / C**0.5).to(BF16)
        y = torch.randint(V, (M,), device=device, dtype=torch.int32)
        return h, w, y, dict(h=h, weight=w, rows=torch.arange(M, dtype=torch.int32, device=device), y=y, temperature=1)

    def forward():
        h, w, y, ours = draw()
        return ours, {"torch, chunked": lambda: chunked_logp(torch_logp, h, w, y), "torch.compile, chunked": lambda c=compiled(torch_logp): chunked_logp(c, h, w, y)}

    def backward():
        h, w, y, ours = draw()
        dlogp = torch.randn(M, device=device) / M
        lse = torch.full((M,), math.log(V) + 0.5, device=device)  # near what these inputs have
        ours |= dict(logp=torch.full((M,), -math.log(V), device=device), lse=lse, entropy=torch.full((M,), math.log(V) - 0.5, device=device), dlogp=dlogp, dh=True,
                     dweight=torch.zeros(w.shape, device=device))
        peers = {"torch, chunked, with forward": lambda: chunked_grad(weighted, h, w, (y, dlogp)),
                 "torch.compile, chunked, with forward": lambda c=compiled(weighted): chunked_grad(c, h, w, (y, dlogp))}
        if fused := liger():
            a, b = h.detach().requires_grad_(), w.detach().requires_grad_()
            peers["Liger fused linear cross entropy, with forward"] = lambda: torch.autograd.grad(
                (lambda out: out[0] if isinstance(out, tuple) else out)(fused.apply(a, b, y.long())), (a, b))
        return ours, peers

    def policy():
        h, w, y, ours = draw()
        old, adv = -math.log(V) + 0.1 * torch.randn(M, device=device), torch.randn(M, device=device)
        cu = torch.arange(0, M + 1, M // 8, dtype=torch.int32, device=device)
        ours |= dict(old_logp=old, advantages=adv, cu_seqlens=cu, denominator=M, stats=torch.zeros(12, dtype=torch.float64, device=device), dh=True,
                     dweight=torch.zeros(w.shape, device=device), **LOSS)
        return ours, {"torch, chunked": lambda: chunked_grad(ppo, h, w, (y, old, adv)),
                      "torch.compile, chunked": lambda c=compiled(ppo): chunked_grad(c, h, w, (y, old, adv))}

    yield Row("linear_logprob", shape, product, inputs + 16 * M, forward)
    yield Row("linear_logprob_grad", shape, 3 * product, inputs + 2 * M * C + 8 * V * C, backward)
    yield Row("linear_policy_loss", shape, 3 * product, inputs + 2 * M * C + 8 * V * C, policy)


def logits_rows(device):
    M, V = 8192, 151936

    def prepare():
        logits, y = torch.randn(M, V, device=device, dtype=BF16) * 3, torch.randint(V, (M,), device=device, dtype=torch.int32)
        eager = lambda x, at: torch.log_softmax(x.float(), -1).gather(1, at.long()[:, None])[:, 0]
        return dict(logits=logits, y=y, temperature=1), {"torch, chunked": lambda: chunks(eager, 1024, logits, y),
                                                         "torch.compile": lambda c=compiled(eager): c(logits, y)}

    yield Row("logprob", f"M {M}, V {V}", 0, 2 * M * V, prepare)


def loss_rows(device):
    N, B = 2**20, 1024
    numbers = lambda: torch.randn(N, device=device)
    cu = torch.arange(0, N + 1, N // B, dtype=torch.int32, device=device)

    def policy():
        old, adv = -3 * torch.rand(N, device=device), numbers()
        logp = old + 0.1 * numbers()

        def eager(x):
            ratio = (x - old).clamp(-20, 20).exp()
            return torch.max(-adv * ratio, -adv * ratio.clamp(0.8, 1.28)).mean()

        def grad(loss):
            x = logp.detach().requires_grad_()
            return torch.autograd.grad(loss(x), x)

        ours = dict(logp=logp, old_logp=old, advantages=adv, cu_seqlens=cu, denominator=N, stats=torch.zeros(12, dtype=torch.float64, device=device), **LOSS)
        return ours, {"torch": lambda: grad(eager), "torch.compile": lambda c=compiled(eager): grad(c)}

    def value():
        v, old, ret = numbers(), numbers(), numbers()

        def eager(x):
            kept = torch.max(torch.min(x, old + 0.2), old - 0.2)
            return 0.5 * torch.max((x - ret) ** 2, (kept - ret) ** 2).mean()

        def grad(loss):
            x = v.detach().requires_grad_()
            return torch.autograd.grad(loss(x), x)

        ours = dict(values=v, old_values=old, returns=ret, cu_seqlens=cu, clip_range=0.2, aggregation="token_mean", denominator=N, scale=1,
                    stats=torch.zeros(8, dtype=torch.float64, device=device))
        return ours, {"torch": lambda: grad(eager), "torch.compile": lambda c=compiled(eager): grad(c)}

    def gae():
        T, (r, v) = N // B, (numbers(), numbers())

        def loop():  # the loop of verl and TRL
            rewards, values, last, out = r.view(B, T), v.view(B, T), torch.zeros(B, device=device), []
            for t in reversed(range(T)):
                following = values[:, t + 1] if t < T - 1 else 0.0
                last = rewards[:, t] + following - values[:, t] + 0.95 * last
                out.append(last)
            a = torch.stack(out[::-1], 1)
            return a, a + values

        return {"rewards": r, "values": v, "cu_seqlens": cu, "gamma": 1, "lambda": 0.95}, {"torch loop of verl and TRL": loop}

    yield Row("policy_loss", "1 M tokens", 0, 16 * N, policy, "float32")
    yield Row("value_loss", "1 M tokens", 0, 16 * N, value, "float32")
    yield Row("gae", f"{B} x {N // B}", 0, 16 * N, gae, "float32")


def linear_rows(device):
    for N, O, I in [(8192, 4096, 4096), (8192, 14336, 4096)]:

        def prepare(N=N, O=O, I=I):
            x, w = torch.randn(N, I, device=device, dtype=BF16), torch.randn(O, I, device=device, dtype=BF16)
            return dict(x=x, weight=w), {"cuBLAS (bf16 result)": lambda: F.linear(x, w)}

        yield Row("linear", f"N {N}, O {O}, I {I}", 2 * N * O * I, 2 * (N * I + O * I) + 4 * N * O, prepare)


ATTENTION = [(4, 4096, 32, 8, 128), (1, 16384, 32, 8, 128), (16, 1024, 16, 16, 64), (2, 8192, 16, 16, 64)]
HEADS = [(8192, 4096, 151936), (8192, 2048, 128256), (1024, 768, 50304)]


def all_rows(device):
    for shape in HEADS:
        yield from head_rows(device, *shape)
    for shape in ATTENTION:
        yield from attention_rows(device, *shape)
    yield from logits_rows(device)
    yield from loss_rows(device)
    yield from linear_rows(device)


def limits(clock, device, n=8192, size=1 << 30):
    a, b = torch.randn(n, n, device=device, dtype=BF16), torch.randn(n, n, device=device, dtype=BF16)
    x = torch.randint(255, (size,), dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    made = interleaved(clock, {"product": lambda: a @ b, "copy": lambda: y.copy_(x)})
    return {"bf16_tflops": 2 * n**3 / made["product"]["ms"] / 1e9, "copy_gbs": 2 * size / made["copy"]["ms"] / 1e6}


def run(receipt, library, only, until):
    device = library.device
    clock = Clock(device)
    wanted = [row for row in all_rows(device) if library.has(row.op) and re.search(only, f"time {row.op} {row.shape} {row.dtype}")]
    if wanted and not receipt.made["limits"]:
        receipt.made["limits"] = limits(clock, device)
        receipt.write()
    for row in wanted:
        if time.monotonic() > until:
            print("out of time: timings are left")
            return
        about = {"op": row.op, "shape": row.shape, "dtype": row.dtype}
        try:
            about |= timed(receipt.made["limits"], library, clock, row)
        except Exception as error:  # the rows after this one are worth as much
            about["failed"] = f"{type(error).__name__}: {error}"[:400]
        receipt.put("timings", {k: about[k] for k in ("op", "shape", "dtype")}, [about])
        print(about, flush=True)
        library.release()


def timed(limit, library, clock, row):
    ours, peers = row.prepare()
    call = library.prepare(row.op, in_place=True, **ours)  # workspace and results are made here, once
    made = interleaved(clock, {"ours": call} | peers)
    library.wait()
    mine = made.pop("ours")
    if "failed" in mine:
        return mine
    limit_ms = max(row.flops / limit["bf16_tflops"] / 1e9, row.bytes / limit["copy_gbs"] / 1e6)
    for peer in made.values():
        if "ms" in peer:
            peer["faster"] = peer["ms"] / mine["ms"]
    return {"ms": mine["ms"], "spread": mine["spread"], "limit_ms": limit_ms, "of_limit": limit_ms / mine["ms"], "workspace_bytes": library.workspace_bytes, "peers": made}
