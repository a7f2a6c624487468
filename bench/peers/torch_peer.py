"""torch, plain and compiled, and transformers, at the shapes of the benchmark's rows."""
import ctypes
import re
import subprocess
import tempfile

from serve import THREADS, numbers, serve

import torch
import torch.nn.functional as F
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

torch.set_num_threads(THREADS)
torch.manual_seed(0)

# its own choice of chunks takes four times as long on a CPU
CHUNKS = LinearCrossEntropyOptions(batch_chunk_size=256, chunking_method=None)


def eager_and_compiled(f, *inputs, wrt=(), name="torch"):
    """f as it stands and through torch.compile; with `wrt`, the gradients of what it returns too."""

    def work(function):
        return lambda: torch.autograd.grad(function(*inputs), wrt) if wrt else function(*inputs)

    torch._dynamo.reset()
    compiled = work(torch.compile(f, dynamic=False))
    compiled()  # which compiles it, and is no measurement
    return [(f"{name} eager", work(f)), (f"{name} compiled", compiled)]


def linear(shape):
    n, o, i = numbers(shape)[:3]
    x, w = torch.randn(n, i), torch.randn(o, i)
    if "bf16" in shape:
        x, w = x.bfloat16(), w.bfloat16()
        return [("torch F.linear bf16", lambda: F.linear(x, w))]
    return [("torch F.linear", lambda: F.linear(x, w))]


def linear_grad_input(shape):
    n, o, i = numbers(shape)
    dy, w = torch.randn(n, o), torch.randn(o, i)
    return [("torch mm", lambda: dy.mm(w))]


def linear_grad_weight(shape):
    n, o, i = numbers(shape)
    dy, x, dw = torch.randn(n, o), torch.randn(n, i), torch.zeros(o, i)
    return [("torch addmm", lambda: dw.addmm_(dy.t(), x))]


def attention_inputs(shape, grad):
    v = dict(re.findall(r"([A-Z]) (\d+)", shape))
    B, T, H, D = (int(v[k]) for k in "BTHD")
    G = int(v.get("G", H))
    return [torch.randn(B, h, T, D, requires_grad=grad) for h in (H, G, G)]


def attention(shape):
    q, k, v = attention_inputs(shape, False)
    return [("torch SDPA", lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]))]


def attention_grad(shape):
    q, k, v = attention_inputs(shape, True)
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    d = torch.randn_like(o)
    return [("torch SDPA backward", lambda: torch.autograd.grad(o, (q, k, v), d, retain_graph=True))]


def head(shape, grad):
    m, c, v = numbers(shape)
    return torch.randn(m, c, requires_grad=grad), (torch.randn(v, c) * 0.05).requires_grad_(grad), torch.randint(v, (m,))


def logprob(shape):
    m, v = numbers(shape)
    x, y = torch.randn(m, v), torch.randint(v, (m, 1))
    return eager_and_compiled(lambda x: x.log_softmax(-1).gather(1, y), x, name="torch log_softmax")


def logprob_grad(shape):
    m, v = numbers(shape)
    x, y, d = torch.randn(m, v, requires_grad=True), torch.randint(v, (m, 1)), torch.randn(m, 1)
    logp = x.log_softmax(-1).gather(1, y)
    return [("torch log_softmax backward", lambda: torch.autograd.grad(logp, x, d, retain_graph=True))]


def sample(shape):
    x = torch.randn(*numbers(shape))

    def step():  # a token and its log-prob, as samplers take them
        logp = x.log_softmax(-1)
        return logp.gather(1, torch.multinomial(logp.exp(), 1))

    return [("torch log_softmax + multinomial", step)]


def linear_logprob(shape):
    h, w, y = head(shape, False)
    plain = eager_and_compiled(lambda h, w: F.linear(h, w).log_softmax(-1).gather(1, y[:, None]), h, w, name="torch linear + log_softmax")
    chunked = lambda: -F.linear_cross_entropy(h, w, y, reduction="none", options=CHUNKS)
    return [*plain, ("F.linear_cross_entropy", chunked)]


def linear_logprob_grad(shape):
    # with the forward pass: so much is computed again, that the logits need not be kept
    h, w, y = head(shape, True)
    d = torch.randn(len(y))
    f = lambda h, w: (F.linear(h, w).log_softmax(-1).gather(1, y[:, None])[:, 0] * d).sum()
    chunked = lambda: torch.autograd.grad((F.linear_cross_entropy(h, w, y, reduction="none", options=CHUNKS) * d).sum(), (h, w))
    return [*eager_and_compiled(f, h, w, wrt=(h, w), name="torch linear + log_softmax"), ("F.linear_cross_entropy", chunked)]


def clipped(logp, old, adv):
    ratio = (logp - old).clamp(-20, 20).exp()
    return torch.max(-adv * ratio, -adv * ratio.clamp(0.8, 1.28)).mean()


def linear_policy_loss(shape):
    h, w, y = head(shape, True)
    old, adv = -11 * torch.rand(len(y)), torch.randn(len(y))
    f = lambda h, w: clipped(F.linear(h, w).log_softmax(-1).gather(1, y[:, None])[:, 0], old, adv)
    # the cross entropy is another loss of the same three products
    chunked = lambda: torch.autograd.grad(F.linear_cross_entropy(h, w, y, options=CHUNKS), (h, w))
    return [*eager_and_compiled(f, h, w, wrt=(h, w), name="torch linear + PPO loss"), ("F.linear_cross_entropy", chunked)]


GAE_IN_C = """
void gae(const float* r, const float* v, float* a, float* q, const long* offsets, long B) {
  for (long b = 0; b < B; b++) {
    float last = 0, next = 0;
    for (long i = offsets[b + 1] - 1; i >= offsets[b]; i--) {
      last = r[i] + next - v[i] + 0.95f * last;
      next = v[i];
      a[i] = last;
      q[i] = last + v[i];
    }
  }
}
"""


def compiled_c(source, name):
    """A function of C, from the compiler that is here, for this machine; nothing where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/{name}.so"
        try:
            subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source.encode(), check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return getattr(ctypes.CDLL(library), name)


def gae(shape):
    if " of 1 to " in shape:
        B, _, T = numbers(shape)
        lengths = torch.tensor([1 + 389 * i % T for i in range(B)])
    else:
        B, T = numbers(shape)
        lengths = torch.full((B,), T)
    N, even = int(lengths.sum()), bool((lengths == T).all())
    r, v, mask = torch.randn(B, T), torch.randn(B, T), (torch.arange(T) < lengths[:, None]).float()

    def loop():  # the loop of verl and TRL; where all are of one length, without its mask
        last, nxt, out = torch.zeros(B), torch.zeros(B), []
        for t in reversed(range(T)):
            new = r[:, t] + nxt - v[:, t] + 0.95 * last
            if even:
                last, nxt = new, v[:, t]
            else:
                m = mask[:, t]
                last, nxt = new * m + (1 - m) * last, v[:, t] * m + (1 - m) * nxt
            out.append(last)
        a = torch.stack(out[::-1], 1)
        return a, a + v

    plain = compiled_c(GAE_IN_C, "gae")
    tensors = [torch.randn(N), torch.randn(N), torch.empty(N), torch.empty(N), F.pad(lengths.cumsum(0), (1, 0))]
    in_c = lambda: plain(*(ctypes.c_void_p(x.data_ptr()) for x in tensors), ctypes.c_long(B))
    return [("torch loop of verl and TRL", loop), *([("plain C, one thread", in_c)] if plain else [])]


def policy_loss(shape):
    n = 2**20
    old = -3 * torch.rand(n)
    logp, adv = (old + 0.1 * torch.randn(n)).requires_grad_(), torch.randn(n)
    return eager_and_compiled(lambda logp: clipped(logp, old, adv), logp, wrt=(logp,))


def value_loss(shape):
    n = 2**20
    v, old, ret = torch.randn(n, requires_grad=True), torch.randn(n), torch.randn(n)

    def loss(v):
        kept = torch.max(torch.min(v, old + 0.2), old - 0.2)
        return 0.5 * torch.max((v - ret) ** 2, (kept - ret) ** 2).mean()

    return eager_and_compiled(loss, v, wrt=(v,))


def preference_loss(shape):
    scores = torch.randn(2**21, requires_grad=True)
    chosen, rejected = 2 * torch.arange(2**20), 2 * torch.arange(2**20) + 1
    return eager_and_compiled(lambda s: -F.logsigmoid(s[chosen] - s[rejected]).mean(), scores, wrt=(scores,))


def adamw(shape):
    if "clipped" not in shape:
        return []
    w = torch.randn(2**23, requires_grad=True)
    w.grad = torch.randn(2**23)
    optimizer = torch.optim.AdamW([w], lr=1e-3, fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_([w], 1.0)
        optimizer.step()

    return [("clip_grad_norm_ + fused AdamW", step)]


def gpt2(layers, width, heads, vocabulary, batch, prompt, response):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=vocabulary, n_positions=prompt + response, n_embd=width, n_layer=layers, n_head=heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=None, pad_token_id=0)
    return GPT2LMHeadModel(config), torch.randint(vocabulary, (batch, prompt + response)), prompt, response


def sft_step(sizes):
    model, ids, _, _ = gpt2(**sizes)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return [("transformers + fused AdamW", step)]


def generation(sizes):
    model, ids, prompt, response = gpt2(**sizes)
    model.eval()
    start = ids[:, :prompt]
    mask = torch.ones_like(start)

    def step():
        with torch.no_grad():
            model.generate(start, attention_mask=mask, max_new_tokens=response, min_new_tokens=response, do_sample=True, top_k=0)

    return [("transformers generate", step)]


serve({
    "linear": linear, "linearGradInput": linear_grad_input, "linearGradWeight": linear_grad_weight, "attention": attention, "attentionGrad": attention_grad,
    "logprob": logprob, "logprobGrad": logprob_grad, "sample": sample, "linearLogprob": linear_logprob, "linearLogprobGrad": linear_logprob_grad,
    "linearPolicyLoss": linear_policy_loss, "gae": gae, "policyLoss": policy_loss, "valueLoss": value_loss,
    "preferenceLoss": preference_loss, "adamw": adamw, "SFT step": sft_step, "generation": generation,
})
