"""TRL's chunked log-prob: logits by tiles of the vocabulary, recomputed in the backward pass."""
from serve import THREADS, numbers, serve

import torch
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

torch.set_num_threads(THREADS)
torch.manual_seed(0)


def logp(h, w, y):
    return ChunkedLogProbFunction.apply(h, w, None, y, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ())[0]


def head(shape, grad):
    m, c, v = numbers(shape)
    return torch.randn(m, c, requires_grad=grad), (torch.randn(v, c) * 0.05).requires_grad_(grad), torch.randint(v, (m,))


def linear_logprob(shape):
    h, w, y = head(shape, False)
    return [("TRL chunked", lambda: logp(h, w, y))]


def linear_policy_loss(shape):
    h, w, y = head(shape, True)
    old, adv = -11 * torch.rand(len(y)), torch.randn(len(y))

    def step():
        ratio = (logp(h, w, y) - old).clamp(-20, 20).exp()
        loss = torch.max(-adv * ratio, -adv * ratio.clamp(0.8, 1.28)).mean()
        return torch.autograd.grad(loss, (h, w))

    return [("TRL chunked + PPO loss", step)]


serve({"linearLogprob": linear_logprob, "linearPolicyLoss": linear_policy_loss})
