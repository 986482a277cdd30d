"""PyTorch's time for the kernels of looplm_kernel_bench at the same shape: eager, and torch.compile. One JSON document on standard output."""
import json
import statistics
import time

import torch
import torch.nn.functional as F

N, D, INNER, V, S, H = 16384, 2048, 5632, 49152, 4096, 16
device, dtype = "cuda", torch.bfloat16


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


def head(hidden, weight, targets):
    """Loss and both gradients, 2048 rows of logits at a time, as chunked trainers do it."""
    for rows, target in zip(hidden.split(2048), targets.split(2048)):
        F.cross_entropy(F.linear(rows, weight).float(), target, reduction="sum").backward()


def seconds(run):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main():
    h, branch, w = normal(N, D), normal(N, D), normal(D)
    gate_up = normal(N, 2 * INNER)
    q, k, v = (normal(N // S, H, S, D // H) for _ in range(3))
    hidden = normal(N, D).requires_grad_()
    weight = (0.02 * normal(V, D)).requires_grad_()
    targets = torch.randint(V, (N,), device=device)
    a, b = normal(N, INNER), normal(D, INNER)
    cases = {
        "gemm": (F.linear, (a, b)),
        "residual_norm": (residual_norm, (h, branch, w, w)),
        "swiglu": (swiglu, (gate_up,)),
        "attention": (attention, (q, k, v)),
        "head": (head, (hidden, weight, targets)),
    }
    out = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "seconds": {}}
    for name, (function, arguments) in cases.items():
        row = {"eager": seconds(lambda: function(*arguments))}
        try:
            compiled = torch.compile(function)
            row["compile"] = seconds(lambda: compiled(*arguments))
        except Exception as error:  # a machine without a compiler for Triton
            row["compile_error"] = str(error).splitlines()[0]
        out["seconds"][name] = row
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
