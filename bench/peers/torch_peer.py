"""What people use today, at the shapes of the benchmark's rows: one line asks, one line answers.

prepare {"name", "shape"}   ->  "ready NAME" | "none"
run                         ->  milliseconds
bytes                       ->  resident bytes beyond what there was before the row was prepared
"""
import ctypes
import gc
import json
import re
import resource
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)


def numbers(shape):
    return [int(n) for n in re.findall(r"\d+", shape)]


def linear(shape):
    n, o, i = numbers(shape)
    x, w = torch.randn(n, i), torch.randn(o, i)
    return "torch F.linear", lambda: F.linear(x, w)


def attention_inputs(shape, grad):
    v = dict(re.findall(r"([A-Z]) (\d+)", shape))
    B, T, H, D = (int(v[k]) for k in "BTHD")
    G = int(v.get("G", H))
    return [torch.randn(B, h, T, D, requires_grad=grad) for h in (H, G, G)]


def attention(shape):
    q, k, v = attention_inputs(shape, False)
    return "torch SDPA", lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def attention_grad(shape):
    q, k, v = attention_inputs(shape, True)
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    d = torch.randn_like(o)
    return "torch SDPA backward", lambda: torch.autograd.grad(o, (q, k, v), d, retain_graph=True)


def head(shape, grad):
    m, c, v = numbers(shape)
    return torch.randn(m, c, requires_grad=grad), (torch.randn(v, c) * 0.05).requires_grad_(grad), torch.randint(v, (m,))


def linear_logprob(shape):
    h, w, y = head(shape, False)
    return "torch linear + log_softmax", lambda: F.linear(h, w).log_softmax(-1).gather(1, y[:, None])


def linear_policy_loss(shape):
    h, w, y = head(shape, True)
    old, adv = -11 * torch.rand(len(y)), torch.randn(len(y))

    def step():
        logp = F.linear(h, w).log_softmax(-1).gather(1, y[:, None])[:, 0]
        ratio = (logp - old).exp()
        loss = torch.max(-adv * ratio, -adv * ratio.clamp(0.8, 1.28)).mean()
        return torch.autograd.grad(loss, (h, w))

    return "torch linear + PPO loss", step


def gae(shape):
    B, T = numbers(shape)
    r, v = torch.randn(B, T), torch.randn(B, T)

    def loop():  # the loop of verl and TRL
        last, out = torch.zeros(B), []
        for t in reversed(range(T)):
            nxt = v[:, t + 1] if t < T - 1 else 0.0
            last = r[:, t] + nxt - v[:, t] + 0.95 * last
            out.append(last)
        a = torch.stack(out[::-1], 1)
        return a, a + v

    return "torch loop of verl and TRL", loop


def policy_loss(shape):
    n = 2**20
    old = -3 * torch.rand(n)
    logp, adv = (old + 0.1 * torch.randn(n)).requires_grad_(), torch.randn(n)

    def step():
        ratio = (logp - old).clamp(-20, 20).exp()
        loss = torch.max(-adv * ratio, -adv * ratio.clamp(0.8, 1.28)).mean()
        return torch.autograd.grad(loss, logp)

    return "torch eager", step


def value_loss(shape):
    n = 2**20
    v, old, ret = torch.randn(n, requires_grad=True), torch.randn(n), torch.randn(n)

    def step():
        kept = torch.max(torch.min(v, old + 0.2), old - 0.2)
        loss = 0.5 * torch.max((v - ret) ** 2, (kept - ret) ** 2).mean()
        return torch.autograd.grad(loss, v)

    return "torch eager", step


def adamw(shape):
    w = torch.randn(2**23, requires_grad=True)
    w.grad = torch.randn(2**23)
    optimizer = torch.optim.AdamW([w], lr=1e-3, fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_([w], 1.0)
        optimizer.step()

    return "clip_grad_norm_ + fused AdamW", step


SHAPES = {"demo": (4, 256, 4, 8192, 64, 32, 48), "gpt2": (12, 768, 12, 50257, 16, 64, 64)}


def gpt2(shape):
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, heads, vocabulary, batch, prompt, response = SHAPES[shape.split()[0]]
    config = GPT2Config(vocab_size=vocabulary, n_positions=prompt + response, n_embd=width, n_layer=layers, n_head=heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=None, pad_token_id=0)
    return GPT2LMHeadModel(config), torch.randint(vocabulary, (batch, prompt + response)), prompt, response


def sft_step(shape):
    model, ids, _, _ = gpt2(shape)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return "transformers + fused AdamW", step


def generation(shape):
    model, ids, prompt, response = gpt2(shape)
    model.eval()
    start = ids[:, :prompt]
    mask = torch.ones_like(start)

    def step():
        with torch.no_grad():
            model.generate(start, attention_mask=mask, max_new_tokens=response, min_new_tokens=response, do_sample=True, top_k=0)

    return "transformers generate", step


ROWS = {
    "linear": linear, "attention": attention, "attentionGrad": attention_grad, "linearLogprob": linear_logprob, "linearPolicyLoss": linear_policy_loss, "gae": gae,
    "policyLoss": policy_loss, "valueLoss": value_loss, "adamw": adamw, "SFT step": sft_step, "generation": generation,
}


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def reset_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) * 1024


work, before = None, 0
for line in sys.stdin:
    command, _, rest = line.strip().partition(" ")
    if command == "hello":
        answer = f"torch {torch.__version__}"
    elif command == "prepare":
        row = json.loads(rest)
        work = None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = resident()
        reset_peak()
        if row["name"] in ROWS:
            name, work = ROWS[row["name"]](row["shape"])
            answer = f"ready {name}"
        else:
            answer = "none"
    elif command == "run":
        start = time.perf_counter()
        work()
        answer = f"{1000 * (time.perf_counter() - start):.6f}"
    else:
        answer = str(max(0, peak() - before))
    print(answer, flush=True)
