"""Times the bench's kernels, and an RLTT update of the same model, in PyTorch: eager and torch.compile. Prints one JSON document.
`--tiny` checks the script on a CPU."""
import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

tiny = "--tiny" in sys.argv
N, D, INNER, V, S, H = (64, 32, 48, 64, 16, 2) if tiny else (16384, 2048, 5632, 49152, 4096, 16)
LAYERS, LOOPS, CHUNK = (2, 4, 32) if tiny else (24, 4, 2048)
device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)


def normal(*shape, **kw):
    return torch.randn(*shape, device=device, dtype=kw.pop("dtype", dtype), **kw)


def rms(x, w):
    return F.rms_norm(x, (D,), w, 1e-6)


def residual_norm(h, branch, w_branch, w_next):
    h = h + rms(branch, w_branch)
    return h, rms(h, w_next)


def swiglu(gate_up):
    g, u = gate_up.chunk(2, -1)
    return F.silu(g) * u


def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attention_backward(out, dout, *inputs):
    """The gradients of an attention that was computed before."""
    torch.autograd.grad(out, inputs, dout, retain_graph=True)


def head(hidden, weight, targets):
    """Loss and both gradients, 2048 rows of logits at a time, as chunked trainers do it."""
    for rows, target in zip(hidden.split(CHUNK), targets.split(CHUNK)):
        F.cross_entropy(F.linear(rows, weight).float(), target, reduction="sum").backward()


class Block(torch.nn.Module):
    """A block with norms before and after each half: [B, S, D] -> [B, S, D]."""

    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ParameterList([torch.ones(D) for _ in range(4)])
        shapes = [(3 * D, D), (D, D), (2 * INNER, D), (D, INNER)]
        self.qkv, self.out, self.gate_up, self.down = (torch.nn.Parameter(0.02 * torch.randn(*shape)) for shape in shapes)

    def forward(self, h, cos, sin):
        q, k, v = (x.unflatten(-1, (H, D // H)).transpose(1, 2) for x in F.linear(rms(h, self.norms[0]), self.qkv).chunk(3, -1))
        mixed = attention(rotated(q, cos, sin), rotated(k, cos, sin), v).transpose(1, 2).flatten(-2)
        h = h + rms(F.linear(mixed, self.out), self.norms[1])
        return h + rms(F.linear(swiglu(F.linear(rms(h, self.norms[2]), self.gate_up)), self.down), self.norms[3])


def rotated(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def token_losses(rows, weight, target):
    return F.cross_entropy(F.linear(rows, weight).float(), target, reduction="none")


class Looped(torch.nn.Module):
    """The blocks LOOPS times; blocks and chunks of the head are recomputed in the backward pass, as `recompute: 'layer'` does."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.randn(V, D))
        self.head = torch.nn.Parameter(0.02 * torch.randn(V, D))
        self.gate = torch.nn.Parameter(0.02 * torch.randn(D))
        self.norm = torch.nn.Parameter(torch.ones(D))
        self.blocks = torch.nn.ModuleList([Block() for _ in range(LAYERS)])
        angle = torch.arange(S)[:, None] * 1e6 ** (-torch.arange(0, D // H, 2) / (D // H))
        self.register_buffer("cos", torch.cos(angle))
        self.register_buffer("sin", torch.sin(angle))

    def loss(self, tokens, advantages):
        """RLTT on policy: -mean of advantage times Σ_t p(exit at t) log P_t(next token), exit weights detached."""
        h = self.embedding[tokens]
        targets = tokens.roll(-1, 1)
        stay, total = 0.0, 0.0
        for t in range(LOOPS):
            for block in self.blocks:
                h = checkpoint(block, h, self.cos, self.sin, use_reentrant=False)
            h = rms(h, self.norm)
            gate = (h @ self.gate).float().detach()
            weight = torch.exp(stay + (F.logsigmoid(gate) if t < LOOPS - 1 else 0.0))
            stay = stay + F.logsigmoid(-gate)
            parts = zip(h.flatten(0, 1).split(CHUNK), targets.flatten().split(CHUNK))
            losses = torch.cat([checkpoint(token_losses, rows, self.head, target, use_reentrant=False) for rows, target in parts])
            total = total + (advantages[:, None] * weight * losses.view_as(targets)).mean()
        return total


def rltt_update(compiled):
    """A step: loss, gradients, clipping and AdamW on bfloat16 parameters (no float32 masters, which looplm keeps)."""
    torch.manual_seed(0)
    model = Looped().to(device, dtype)
    if compiled:
        for i, block in enumerate(model.blocks):
            model.blocks[i] = torch.compile(block)
    fused = {} if tiny else {"fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, **fused)
    tokens = torch.randint(V, (N // S, S), device=device)
    advantages = torch.tensor([1.0, -1.0] * (N // S // 2), device=device)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(tokens, advantages)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert math.isfinite(loss.item())

    return run


def synchronize():
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run, times=15):
    for _ in range(3):
        run()
    synchronize()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def main():
    h, branch, w = normal(N, D), normal(N, D), normal(D)
    gate_up = normal(N, 2 * INNER)
    q, k, v = (normal(N // S, H, S, D // H) for _ in range(3))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    mixed, dmixed = attention(*leaves), torch.randn_like(q)
    hidden = normal(N, D).requires_grad_()
    weight = (0.02 * normal(V, D)).requires_grad_()
    targets = torch.randint(V, (N,), device=device)
    a, b = normal(N, INNER), normal(D, INNER)
    cases = {
        "gemm": (F.linear, (a, b)),
        "residual_norm": (residual_norm, (h, branch, w, w)),
        "swiglu": (swiglu, (gate_up,)),
        "attention": (attention, (q, k, v)),
        "attention_backward": (attention_backward, (mixed, dmixed, *leaves)),
        "head": (head, (hidden, weight, targets)),
    }
    name_of_device = "cpu" if tiny else torch.cuda.get_device_name()
    out = {"torch": torch.__version__, "device": name_of_device, "seconds": {}}

    def row(name, eager, compiled, times):
        times_of = out["seconds"][name] = {"eager": seconds(eager(), times)}
        try:
            times_of["compile"] = seconds(compiled(), times)
        except Exception as error:  # a machine without a compiler for Triton
            times_of["compile_error"] = f"{error}".split("\n")[0]

    for name, (function, arguments) in cases.items():
        on = lambda f: lambda: f(*arguments)
        row(name, lambda: on(function), lambda: on(torch.compile(function)), 15)
    row("RLTT update", lambda: rltt_update(False), lambda: rltt_update(True), 5)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
