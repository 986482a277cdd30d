// out = gate(g)·u, gate(g) = g σ(g) or σ(g)  (math.md §1).  gate_up [n, 2f]: g then u; out [n, f]
#include "rows.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

template <LoopGate gate, class E>
inline void forward_row(int64_t f, const E* g_row, const E* up, E* out) {
  for_batches(
      f, LOOPLM_BATCHES(j, part, count) {
        constexpr int N = count;
        vf g[N], s[N];
        for (int i = 0; i < N; i++) s[i] = g[i] = load(g_row + j + i * W, part);
        vsigmoid(s);
        for (int i = 0; i < N; i++)
          store(out + j + i * W, (gate == LOOP_SILU ? g[i] * s[i] : s[i]) * load(up + j + i * W, part), part);
      });
}

// ∂g = ∂out u σ(g) (1 + g (1 - σ(g))) or ∂out u σ(g) (1 - σ(g)),  ∂u = ∂out gate(g)
template <LoopGate gate, class E>
inline void backward_row(int64_t f, const E* g_row, const E* up, const E* dout, E* dgate, E* dup, E* out) {
  for_batches(
      f, LOOPLM_BATCHES(j, part, count) {
        constexpr int N = count;
        vf s[N];
        for (int i = 0; i < N; i++) s[i] = load(g_row + j + i * W, part);
        vsigmoid(s);
        for (int i = 0; i < N; i++) {
          const int64_t at = j + i * W;
          const vf g = load(g_row + at, part), u = load(up + at, part), d = load(dout + at, part),
                   value = gate == LOOP_SILU ? g * s[i] : s[i],
                   slope = gate == LOOP_SILU ? s[i] + value * (1.0f - s[i]) : value * (1.0f - value);
          store(dgate + at, d * u * slope, part);
          store(dup + at, d * value, part);
          store(out + at, value * u, part);
        }
      });
}

template <LoopGate gate, class E>
int forward(Context& ctx, int64_t n, int64_t f, const E* gate_up, E* out) {
  for_rows(ctx, n, f, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * f; i < end * f; i += f) forward_row<gate>(f, gate_up + 2 * i, gate_up + 2 * i + f, out + i);
  });
  return 0;
}

template <LoopGate gate, class E>
int backward(Context& ctx, int64_t n, int64_t f, const E* gate_up, const E* dout, E* dgate_up, E* out) {
  for_rows(ctx, n, f, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * f; i < end * f; i += f)
      backward_row<gate>(f, gate_up + 2 * i, gate_up + 2 * i + f, dout + i, dgate_up + 2 * i, dgate_up + 2 * i + f, out + i);
  });
  return 0;
}

template <class E>
int forward_typed(void* context, LoopGate gate, int64_t n, int64_t f, const void* gate_up, void* out) {
  return (gate == LOOP_SILU ? forward<LOOP_SILU, E> : forward<LOOP_SIGMOID, E>)(*static_cast<Context*>(context), n, f,
                                                                                static_cast<const E*>(gate_up),
                                                                                static_cast<E*>(out));
}
template <class E>
int backward_typed(void* context, LoopGate gate, int64_t n, int64_t f, const void* gate_up, const void* dout, void* dgate_up,
                   void* out) {
  return (gate == LOOP_SILU ? backward<LOOP_SILU, E>
                            : backward<LOOP_SIGMOID, E>)(*static_cast<Context*>(context), n, f, static_cast<const E*>(gate_up),
                                                         static_cast<const E*>(dout), static_cast<E*>(dgate_up),
                                                         static_cast<E*>(out));
}

}  // namespace

int swiglu(void* context, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, void* out) {
  return (dt == LOOP_BF16 ? forward_typed<bf16> : forward_typed<float>)(context, gate, n, f, gate_up, out);
}

int swiglu_backward(void* context, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, const void* dout,
                    void* dgate_up, void* out) {
  return (dt == LOOP_BF16 ? backward_typed<bf16> : backward_typed<float>)(context, gate, n, f, gate_up, dout, dgate_up, out);
}

}  // namespace looplm::cpu::LOOPLM_ISA
