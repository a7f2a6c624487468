"""The ops held to their formulas (references.py): odd shapes, NaN in masked slots, extremes, f32 and bf16, the same bits twice and in any batch.

Tolerance, as in the tests of the other devices: |got - f64| <= 2 max |naive f32 - f64| + `ulp` ulps of the output's largest value; an output in
bf16 may be off by its own rounding besides, 2^-8 of each value.
"""
import math
from dataclasses import dataclass, field

import torch

import references

F32, BF16 = torch.float32, torch.bfloat16


@dataclass
class Case:
    op: str
    name: str
    args: dict
    ulp: float = 8
    # arguments of a smaller call, and where each of its outputs must stand, bit for bit, in those of the whole
    part: dict = None
    within: dict = field(default_factory=dict)


class Draw:
    """Random inputs on a device from a seed: the same for every device."""

    def __init__(self, seed, device, dtype, large=False):
        self.random = torch.Generator().manual_seed(seed)
        self.device, self.dtype, self.large = device, dtype, large  # large: cases of many blocks too, which a simulator takes hours for

    def normal(self, *shape, deviation=1.0, dtype=None):
        return (torch.randn(shape, generator=self.random) * deviation).to(dtype or F32).to(self.device)

    def narrow(self, *shape, deviation=1.0):
        return self.normal(*shape, deviation=deviation, dtype=self.dtype)

    def uniform(self, n, low, high):
        return (low + (high - low) * torch.rand(n, generator=self.random)).to(self.device)

    def ids(self, n, below):
        return torch.randint(below, (n,), generator=self.random, dtype=torch.int32).to(self.device)

    def mask(self, *shape):
        return (torch.rand(shape, generator=self.random) > 0.3).to(torch.int32).to(self.device)

    def offsets(self, lengths):
        return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(torch.int32).to(self.device)

    def stats(self, n):
        return torch.full((n,), 0.5, dtype=torch.float64, device=self.device)

    def ints(self, *values):
        return torch.tensor(values, dtype=torch.int32, device=self.device)


def poisoned(x, mask):
    """masked slots hold what would spoil any sum"""
    bad = torch.tensor([math.nan, math.inf, 1e30], device=x.device)[torch.arange(x.numel(), device=x.device) % 3].view_as(x)
    return torch.where(mask != 0, x, bad)


def attention_cases(d):
    for i, (lengths, H, G, D, prefix, deviation) in enumerate([([1, 3], 1, 1, 8, None, 1), ([70, 0, 3, 129], 4, 2, 64, None, 1), ([33, 165, 20, 7], 4, 2, 128, [-1, 0, -1, 1], 1),
                                                             ([130], 2, 2, 40, None, 1), ([67, 5], 4, 1, 64, None, 8), ([9, 64], 1, 1, 256, None, 1)]):
        N, cu = sum(lengths), d.offsets(lengths)
        qkv = dict(q=d.narrow(N, H, D, deviation=deviation), k=d.narrow(N, G, D, deviation=deviation), v=d.narrow(N, G, D))
        more = dict(cu_seqlens=cu, scale=D**-0.5, **({"prefix": d.ints(*prefix)} if prefix else {}))
        name = f"lengths {lengths}, H {H}, G {G}, D {D}" + (", prefix" if prefix else "") + (f", x {deviation}" if deviation > 1 else "")
        last = slice(N - lengths[-1], N)
        alone = dict(cu_seqlens=d.offsets(lengths[-1:]), scale=D**-0.5, **{x: t[last] for x, t in qkv.items()}) if not prefix and len(lengths) > 1 else None
        yield Case("attention", name, {**qkv, **more}, part=alone, within={"o": last, "lse": last})
        made = references.attention(torch.float64, lambda x: x, **qkv, **more)
        kept = dict(o=made["o"].to(d.dtype), lse=made["lse"].float(), d_o=d.narrow(N, H, D))
        if alone:
            alone = {**alone, **{x: t[last] for x, t in kept.items()}}
        yield Case("attention_grad", name, {**qkv, **kept, **more}, part=alone, within={"dq": last, "dk": last, "dv": last})


def logprob_cases(d):
    for M, V, T, deviation in [(1, 1, 1, 1), (3, 2, 0.7, 3), (5, 511, 1.3, 3), (4, 1031, 1, 3), (2, 50257, 1, 3), (2, 530, 1, 1e4)]:
        logits, y = d.narrow(M, V, deviation=deviation), d.ids(M, V)
        if M == 4:
            logits[:, 1::2] = -math.inf
            y = y // 2 * 2
        if M == 3:
            logits[torch.arange(3), y.long()] += 40  # confident tokens
        args, name = dict(logits=logits, y=y, temperature=T), f"M {M}, V {V}" + (f", x {deviation:g}" if deviation > 3 else "")
        part = dict(args, logits=logits[:1], y=y[:1]) if M > 1 else None
        yield Case("logprob", name, args, part=part, within={k: slice(0, 1) for k in ("logp", "lse", "entropy")})
        made = {k: x.float() for k, x in references.logprob(torch.float64, None, **args).items()}
        yield Case("logprob_grad", name, {**args, **made, "dlogp": d.normal(M), **({"dentropy": d.normal(M)} if M % 2 else {})})


def head_sizes(d):
    large = [(2048, 1024, 32000, 2048, 1)] if d.large else []
    for N, C, V, M, T in [(1, 1, 1, 1, 1), (5, 19, 67, 9, 0.7), (6, 33, 1031, 7, 1.3), (40, 16, 520, 300, 1), (150, 64, 777, 140, 1)] + large:
        yield f"N {N}, C {C}, V {V}, M {M}", dict(h=d.narrow(N, C), weight=d.narrow(V, C, deviation=0.5), rows=d.ids(M, N), y=d.ids(M, V), temperature=T)


def head_cases(d):
    for name, args in head_sizes(d):
        M, (V, C) = len(args["rows"]), args["weight"].shape
        few = slice(M - M // 3, M)
        part = dict(args, rows=args["rows"][few], y=args["y"][few]) if M > 2 else None
        yield Case("linear_logprob", name, args, part=part, within={k: few for k in ("logp", "lse", "entropy")})
        made = {k: x.float() for k, x in references.linear_logprob(torch.float64, None, **args).items()}
        more = dict(made, dlogp=d.normal(M), dh=True, dweight=d.normal(V, C), **({"dentropy": d.normal(M)} if M % 2 else {}))
        yield Case("linear_logprob_grad", name, {**args, **more})
    extreme = dict(h=d.narrow(3, 24, deviation=50), weight=d.narrow(600, 24, deviation=50), rows=d.ids(4, 3), y=d.ids(4, 600), temperature=1)
    yield Case("linear_logprob", "x 50", extreme)


OPTIONS = dict(objective="clipped_ratio", clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=math.inf, log_ratio_clamp=20, aggregation="token_mean",
               denominator=29, kl_coef=0, estimator="k3", entropy_coef=0, scale=1)
LENGTHS = [5, 0, 37, 1, 16]
M = sum(LENGTHS)


def losses(d):
    """the options of a policy loss, by what they try"""
    yield "plain", {}
    yield "masked", dict(clip_ratio_c=1.1, mask=d.mask(M), aggregation="seq_mean_token_mean", scale=0.3)
    yield "k3, importance", dict(ref_logp=d.uniform(M, -3, -0.1), kl_coef=0.1, importance=d.uniform(M, 0.5, 2), aggregation="seq_mean_token_sum")
    yield "k2, entropy", dict(ref_logp=d.uniform(M, -3, -0.1), kl_coef=0.1, estimator="k2", entropy_coef=0.01, aggregation="seq_mean_token_sum_norm")
    yield "k1, masked", dict(ref_logp=d.uniform(M, -3, -0.1), kl_coef=0.1, estimator="k1", mask=d.mask(M))
    yield "log_likelihood", dict(objective="log_likelihood")


def policy_cases(d):
    for name, more in losses(d):
        old = d.uniform(M, -3, -0.1)
        args = dict(logp=old + 0.4 * d.normal(M), old_logp=old, advantages=d.normal(M), cu_seqlens=d.offsets(LENGTHS), stats=d.stats(12), **{**OPTIONS, **more})
        if args["entropy_coef"]:
            args.update(entropy=d.uniform(M, 0, 3), dentropy=True)
        if "mask" in args:
            for x in ("logp", "old_logp", "advantages", "ref_logp"):
                if x in args:
                    args[x] = poisoned(args[x], args["mask"])
        yield Case("policy_loss", name, args)


def linear_policy_cases(d):
    for (C, V), (name, more) in zip([(8, 37), (19, 530), (64, 777), (8, 1031), (24, 130), (40, 260)], losses(d)):
        args = dict(h=d.narrow(23, C), weight=d.narrow(V, C, deviation=0.5), rows=d.ids(M, 23), y=d.ids(M, V), temperature=0.9, old_logp=d.uniform(M, -6, -1),
                    advantages=d.normal(M), cu_seqlens=d.offsets(LENGTHS), stats=d.stats(12), dh=True, dweight=d.normal(V, C), **{**OPTIONS, **more})
        if "mask" in args:
            args["old_logp"], args["advantages"] = poisoned(args["old_logp"], args["mask"]), poisoned(args["advantages"], args["mask"])
        yield Case("linear_policy_loss", f"C {C}, V {V}, {name}", args)


def advantage_cases(d):
    for lengths in [[1], [5, 0, 1, 40, 16, 15, 17], [300, 2, 1100]]:
        N, last = sum(lengths), lengths[-1]
        for masked in (False, True):
            args = dict(rewards=d.normal(N), values=d.normal(N), cu_seqlens=d.offsets(lengths), gamma=0.99, **{"lambda": 0.95})
            if masked:
                mask = d.mask(N)
                args.update(mask=mask, rewards=poisoned(args["rewards"], mask), values=poisoned(args["values"], mask))
            alone = {k: x[-last:] if k in ("rewards", "values", "mask") else x for k, x in args.items()} | {"cu_seqlens": d.offsets([last])}
            yield Case("gae", f"lengths {lengths}" + (", masked" if masked else ""), args, part=alone, within={k: slice(N - last, N) for k in ("advantages", "returns")})
    for B, T in [(1, 1), (3, 70), (17, 33)]:
        mask = d.mask(B, T)
        args = dict(rewards=poisoned(d.normal(B, T), mask), values=poisoned(d.normal(B, T), mask), mask=mask, gamma=1, **{"lambda": 0.9})
        yield Case("gae_padded", f"{B} x {T}", args)


def value_cases(d):
    for name, more in [("clipped", {}), ("masked", dict(mask=d.mask(M), aggregation="seq_mean_token_mean", scale=0.5)), ("unclipped", dict(old_values=None, clip_range=math.inf))]:
        args = dict(values=d.normal(M), old_values=d.normal(M), returns=d.normal(M), cu_seqlens=d.offsets(LENGTHS), clip_range=0.4, aggregation="token_mean",
                    denominator=41, scale=1, stats=d.stats(8)) | more
        if "mask" in args:
            for x in ("values", "old_values", "returns"):
                args[x] = poisoned(args[x], args["mask"])
        yield Case("value_loss", name, {k: x for k, x in args.items() if x is not None})


def preference_cases(d):
    for form, more in [("bradley_terry", {}), ("dpo", dict(ref_scores=d.normal(11, deviation=2))), ("ipo", dict(ref_scores=d.normal(11, deviation=2))),
                       ("bradley_terry", dict(margin=d.uniform(17, 0, 2), label=d.uniform(17, 0, 1), weight=d.uniform(17, 0, 1), label_smoothing=0.1, center_coef=0.01))]:
        args = dict(scores=d.normal(11, deviation=2), chosen=d.ids(17, 11), rejected=d.ids(17, 11), form=form, beta=0.3, label_smoothing=0, center_coef=0,
                    denominator=13, scale=1, stats=d.stats(8)) | more
        yield Case("preference_loss", form + (", margin" if "margin" in more else ""), args)


def linear_cases(d):
    for N, O, I in [(1, 1, 1), (3, 7, 0), (17, 33, 31), (70, 100, 260), (130, 264, 72)] + ([(4096, 8192, 1024)] if d.large else []):
        x, weight, dy, name = d.narrow(N, I), d.narrow(O, I), d.narrow(N, O), f"N {N}, O {O}, I {I}"
        few = slice(0, N // 2)
        bias = {"bias": d.normal(O)} if N % 2 else {}
        yield Case("linear", name, dict(x=x, weight=weight, **bias), part=dict(x=x[few], weight=weight, **bias) if N > 1 else None, within={"y": few})
        yield Case("linear_grad_input", name, dict(dy=dy, weight=weight), part=dict(dy=dy[few], weight=weight) if N > 1 else None, within={"dx": few})
        yield Case("linear_grad_weight", name, dict(dy=dy, x=x, dweight=d.normal(O, I), **({"dbias": d.normal(O)} if N % 2 else {})))


def cast_cases(d):
    yield Case("cast", "to bf16", dict(x=d.normal(7, 73), y=BF16))


def reward_cases(d):
    B, cu, mask = len(LENGTHS), d.offsets(LENGTHS), d.mask(M)
    for estimator in ("k1", "abs", "k2", "k3"):
        yield Case("token_rewards", estimator, dict(logp=d.uniform(M, -3, -0.1), ref_logp=d.uniform(M, -9, -0.1), scores=d.normal(B), cu_seqlens=cu, kl_coef=0.25,
                                                    estimator=estimator))
    for form in ("verl", "trl", "openrlhf"):
        yield Case("whiten", form, dict(x=d.normal(M), cu_seqlens=cu, shift_mean=1, form=form))
        yield Case("whiten", f"{form}, masked, with its mean", dict(x=poisoned(d.normal(M), mask), mask=mask, cu_seqlens=cu, shift_mean=0, form=form))
    for lengths in (LENGTHS, [9000, 3]):
        N = sum(lengths)
        yield Case("moments", f"lengths {lengths}", dict(x=d.normal(N), cu_seqlens=d.offsets(lengths)))
        for mean in (0, 1):
            args, name = dict(cu_seqlens=d.offsets(lengths), mean=mean), f"lengths {lengths}" + (", mean" if mean else "")
            yield Case("sequence_sum", name, dict(args, x=d.normal(N)))
            yield Case("sequence_sum_grad", name, dict(args, dy=d.normal(len(lengths)), sizes={"N": N}))
    yield Case("moments", "masked", dict(x=poisoned(d.normal(M), mask), mask=mask, cu_seqlens=cu))


def elementwise_cases(d):
    """shape, and the scalars of each op"""
    for shape in [(1,), (7, 73), (3, 5, 341), (10007,)]:
        name, x = f"{list(shape)}", lambda: d.normal(*shape)
        for op in ("add", "sub", "mul"):
            yield Case(op, name, dict(a=x(), b=x()))
        yield Case("scale", name, dict(x=x(), factor=0.7, shift=-2))
        yield Case("clamp", name, dict(x=x(), low=-0.5, high=1))
        yield Case("clamp_grad", name, dict(dy=x(), x=x(), low=-0.5, high=1))
        yield Case("accumulate", name, dict(x=x(), y=x()))
        yield Case("fill", name, dict(value=0.1, sizes={"...": shape}))
        yield Case("sum", name, dict(x=x()))
        yield Case("norm_squared", name, dict(x=x(), total=d.stats(1)))
        for step, max_norm in ((1, math.inf), (7, 0.5)):
            norm = torch.full((1,), 30.0, dtype=torch.float64, device=d.device)
            yield Case("adamw", f"{name}, step {step}", dict(weight=x(), grad=x(), m=x(), v=x().abs(), norm_squared=norm, lr=0.01, beta1=0.9, beta2=0.99, eps=1e-8,
                                                             weight_decay=0.1, max_norm=max_norm, step=step))


CASES = [attention_cases, logprob_cases, head_cases, policy_cases, linear_policy_cases, advantage_cases, value_cases, preference_cases, linear_cases, cast_cases,
         reward_cases, elementwise_cases]


def all_cases(device, seed, dtype, large=False):
    for i, cases in enumerate(CASES):
        yield from cases(Draw(seed + i, device, dtype, large))


def same_bits(a, b):
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def errors(case, got, dtype):
    """of each output the reference has: the largest error, what is allowed there, and whether it holds"""
    reference = getattr(references, case.op)
    truth = reference(torch.float64, lambda x: x, **case.args)
    naive = reference(F32, (lambda x: x.to(BF16).to(F32)) if dtype == BF16 else (lambda x: x), **case.args)
    for name, wanted in truth.items():
        if name not in got:
            continue
        g, n, wanted = (t.double().to(got[name].device) for t in (got[name], naive[name], wanted))
        finite = wanted.isfinite()
        largest = wanted[finite].abs().max().item() if finite.any() else 0.0
        both = finite & n.isfinite()
        loss = (n - wanted)[both].abs().max().item() if both.any() else 0.0
        own = wanted.abs() * 2**-8 if got[name].dtype == BF16 else 0.0
        allowed = 2 * loss + case.ulp * max(largest * 2**-23, 2**-149) + own
        off = torch.where((g == wanted) | (~finite & (g == wanted.float().double())), 0.0, (g - wanted).abs())
        if name == "stats" and case.op.endswith("policy_loss"):
            off[10] = 0  # how many ratios differ from 1 in f32: not the formula's business
        worst = (off / allowed).nan_to_num(nan=math.inf).max().item() if off.numel() else 0.0
        yield {"output": name, "error": off.max().item() if off.numel() else 0.0, "largest": largest, "of_allowed": worst, "holds": worst <= 1}


def check(library, case, dtype):
    """the rows of a receipt for one case"""
    first = {k: x.clone() for k, x in library.run(case.op, **case.args).items()}
    library.wait()
    second = library.run(case.op, **case.args)
    library.wait()
    part = None
    if case.part is not None:
        part = library.run(case.op, **case.part)
        library.wait()
    for row in errors(case, first, dtype):
        name = row["output"]
        row["same_bits_twice"] = same_bits(first[name], second[name])
        if part and name in case.within:
            row["same_bits_in_batch"] = same_bits(part[name], first[name][case.within[name]])
        row["holds"] = row["holds"] and row["same_bits_twice"] and row.get("same_bits_in_batch", True)
        yield row
