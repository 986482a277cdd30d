// The exit gate, and the exit distribution over the loops (math.md §1).
#include "rows.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

// h [n, d], w [d], a [n]
template <class E>
int gate_rows(Context& ctx, int64_t n, int64_t d, const E* h, const E* w, const E* b, float* a) {
  const float bias = to_float(*b);
  for_rows(ctx, n, d, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      Sums products;
      for_vectors(
          d, LOOPLM_VECTORS(j, part, chain) { products.chain[chain] += load(w + j, part) * load(h + i * d + j, part); });
      a[i] = products.total() + bias;
    }
  });
  return 0;
}

template <class E>
inline void gate_row_backward(int64_t d, float g, const E* h, const E* w, float* dh, float* dw) {
  for_vectors(
      d, LOOPLM_VECTORS(j, part, chain) {
        store(dh + j, load(dh + j, part) + g * load(w + j, part), part);
        store(dw + j, load(dw + j, part) + g * load(h + j, part), part);
      });
}

template <class E>
int gate_rows_backward(Context& ctx, int64_t n, int64_t d, const float* da, const E* h, const E* w, float* dh, float* dw,
                       float* db) {
  if (n <= 0) return 0;
  const BlockSums blocks(ctx, n, d, d + 1);  // ∂w, ∂b
  blocks.run([=](int64_t begin, int64_t end, float* sums) {
    for (int64_t i = begin; i < end; i++) {
      if (da[i] == 0) continue;  // prompt tokens, and tokens without a loss
      gate_row_backward(d, da[i], h + i * d, w, dh + i * d, sums);
      sums[d] += da[i];
    }
  });
  blocks.add_to(dw, 0, d);
  blocks.add_to(db, d, 1);
  return 0;
}

// log(1 + y) for y in [0, 1]. The last term corrects for the rounding of 1 + y.
inline vf log_one_plus(vf y) {
  const vf u = 1.0f + y;
  return vlog(u) + (y - (u - 1.0f)) * vreciprocal(u);
}
// log σ(x) = min(x, 0) - log(1 + e^-|x|)
inline vf log_sigmoid(vf x) { return vmin(x, vf{}) - log_one_plus(vexp(-vmax(x, -x))); }

constexpr int64_t COST = 32;  // cost of one element relative to a kernel that only adds; determines the size of a task

}  // namespace

int gate(void* context, LoopDType dt, int64_t n, int64_t d, const void* h, const void* w, const void* b, void* a) {
  auto& ctx = *static_cast<Context*>(context);
  return dt == LOOP_BF16 ? gate_rows(ctx, n, d, static_cast<const bf16*>(h), static_cast<const bf16*>(w),
                                     static_cast<const bf16*>(b), static_cast<float*>(a))
                         : gate_rows(ctx, n, d, static_cast<const float*>(h), static_cast<const float*>(w),
                                     static_cast<const float*>(b), static_cast<float*>(a));
}

int gate_backward(void* context, LoopDType dt, int64_t n, int64_t d, const void* da, const void* h, const void* w, void* dh,
                  void* dw, void* db) {
  auto& ctx = *static_cast<Context*>(context);
  const auto* g = static_cast<const float*>(da);
  auto *dx = static_cast<float*>(dh), *weight = static_cast<float*>(dw), *bias = static_cast<float*>(db);
  return dt == LOOP_BF16
             ? gate_rows_backward(ctx, n, d, g, static_cast<const bf16*>(h), static_cast<const bf16*>(w), dx, weight, bias)
             : gate_rows_backward(ctx, n, d, g, static_cast<const float*>(h), static_cast<const float*>(w), dx, weight, bias);
}

// log p_t = log σ(a_t) + Σ_{s<t} log σ(-a_s). The last loop takes the remaining probability; its gate is unused. gates,
// log_pdf, pdf: [loops, n].
int exit_pdf(void* context, LoopDType, int64_t loops, int64_t n, const void* gates_, void* log_pdf_, void* pdf_) {
  const auto* gates = static_cast<const float*>(gates_);
  auto *log_pdf = static_cast<float*>(log_pdf_), *pdf = static_cast<float*>(pdf_);
  for_rows(*static_cast<Context*>(context), n, loops * COST, [=](int64_t begin, int64_t end, int) {
    for_vectors(
        end - begin, LOOPLM_VECTORS(j, part, chain) {
          vf stay = {};
          for (int64_t t = 0; t < loops; t++) {
            const int64_t at = t * n + begin + j;
            vf log_p = stay;
            if (t < loops - 1) {
              const vf a = load(gates + at, part);
              log_p += log_sigmoid(a);
              stay += log_sigmoid(-a);
            }
            if (log_pdf) store(log_pdf + at, log_p, part);
            if (pdf) store(pdf + at, vexp(log_p), part);
          }
        });
  });
  return 0;
}

// Let d_t = ∂L/∂p_t, S_t = Π_{s<=t} (1 - λ_s), and V_t the expected d over the exits from loop t on:
//   ∂L/∂a_t = S_{t-1} λ_t (1 - λ_t) (d_t - V_{t+1}),   V_t = λ_t d_t + (1 - λ_t) V_{t+1},   V_T = d_T,   ∂L/∂a_T = 0
// This is the sum of math.md §1, with the differences taken before the products. The first loop below runs from T down and
// omits S.
int exit_pdf_backward(void* context, LoopDType, int64_t loops, int64_t n, const void* gates_, const void* dpdf_, void* dgates_) {
  const auto *gates = static_cast<const float*>(gates_), *dpdf = static_cast<const float*>(dpdf_);
  auto* dgates = static_cast<float*>(dgates_);
  if (loops <= 0) return 0;
  for_rows(*static_cast<Context*>(context), n, loops * COST, [=](int64_t begin, int64_t end, int) {
    for_vectors(
        end - begin, LOOPLM_VECTORS(j, part, chain) {
          const int64_t first = begin + j, last = (loops - 1) * n + first;
          vf rest = load(dpdf + last, part);
          store(dgates + last, vf{}, part);
          for (int64_t at = last - n; at >= first; at -= n) {
            const vf a = load(gates + at, part), leave = vsigmoid(a), stay = vsigmoid(-a), gain = load(dpdf + at, part) - rest;
            store(dgates + at, leave * stay * gain, part);
            rest += leave * gain;
          }
          vf reached = splat(1.0f);
          for (int64_t at = first; at < last; at += n) {
            store(dgates + at, load(dgates + at, part) * reached, part);
            reached *= vsigmoid(-load(gates + at, part));
          }
        });
  });
  return 0;
}

}  // namespace looplm::cpu::LOOPLM_ISA
