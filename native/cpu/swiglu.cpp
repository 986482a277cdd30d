// out = silu(g)·u, silu(g) = g σ(g)  (math.md §1).  gate_up [n, 2f]: g then u; out [n, f]
#include "rows.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

template <class E>
inline void forward_row(int64_t f, const E* gate, const E* up, E* out) {
  for_batches(
      f, LOOPLM_BATCHES(j, part, count) {
        constexpr int N = count;
        vf g[N], s[N];
        for (int i = 0; i < N; i++) s[i] = g[i] = load(gate + j + i * W, part);
        vsigmoid(s);
        for (int i = 0; i < N; i++) store(out + j + i * W, g[i] * s[i] * load(up + j + i * W, part), part);
      });
}

// ∂g = ∂out u σ(g) (1 + g (1 - σ(g))),  ∂u = ∂out silu(g)
template <class E>
inline void backward_row(int64_t f, const E* gate, const E* up, const E* dout, E* dgate, E* dup, E* out) {
  for_batches(
      f, LOOPLM_BATCHES(j, part, count) {
        constexpr int N = count;
        vf s[N];
        for (int i = 0; i < N; i++) s[i] = load(gate + j + i * W, part);
        vsigmoid(s);
        for (int i = 0; i < N; i++) {
          const int64_t at = j + i * W;
          const vf g = load(gate + at, part), u = load(up + at, part), d = load(dout + at, part), silu = g * s[i];
          store(dgate + at, d * u * (s[i] + silu * (1.0f - s[i])), part);
          store(dup + at, d * silu, part);
          store(out + at, silu * u, part);
        }
      });
}

template <class E>
int forward(Context& ctx, int64_t n, int64_t f, const E* gate_up, E* out) {
  for_rows(ctx, n, f, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * f; i < end * f; i += f) forward_row(f, gate_up + 2 * i, gate_up + 2 * i + f, out + i);
  });
  return 0;
}

template <class E>
int backward(Context& ctx, int64_t n, int64_t f, const E* gate_up, const E* dout, E* dgate_up, E* out) {
  for_rows(ctx, n, f, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * f; i < end * f; i += f)
      backward_row(f, gate_up + 2 * i, gate_up + 2 * i + f, dout + i, dgate_up + 2 * i, dgate_up + 2 * i + f, out + i);
  });
  return 0;
}

}  // namespace

int swiglu(void* context, LoopDType dt, int64_t n, int64_t f, const void* gate_up, void* out) {
  auto& ctx = *static_cast<Context*>(context);
  return dt == LOOP_BF16 ? forward(ctx, n, f, static_cast<const bf16*>(gate_up), static_cast<bf16*>(out))
                         : forward(ctx, n, f, static_cast<const float*>(gate_up), static_cast<float*>(out));
}

int swiglu_backward(void* context, LoopDType dt, int64_t n, int64_t f, const void* gate_up, const void* dout, void* dgate_up,
                    void* out) {
  auto& ctx = *static_cast<Context*>(context);
  return dt == LOOP_BF16 ? backward(ctx, n, f, static_cast<const bf16*>(gate_up), static_cast<const bf16*>(dout),
                                    static_cast<bf16*>(dgate_up), static_cast<bf16*>(out))
                         : backward(ctx, n, f, static_cast<const float*>(gate_up), static_cast<const float*>(dout),
                                    static_cast<float*>(dgate_up), static_cast<float*>(out));
}

}  // namespace looplm::cpu::LOOPLM_ISA
