// RMS(v; w) = v · s · w with s = rsqrt(mean v² + eps), and the residual connection around it (math.md §1). A row stays in L1
// from its first pass to its last. Sums over a row are float32.
#include <math.h>

#include "rows.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

inline float inverse_rms(const Sums& squares, int64_t d, double eps) {
  return 1.0f / sqrtf(squares.total() / float(d) + float(eps));
}

template <class E>
inline void norm_row(int64_t d, double eps, const E* h, const E* branch, const E* w_branch, const E* w_next, E* h_out, E* x) {
  Sums squares;
  if (branch && !w_branch) {
    for_vectors(
        d, LOOPLM_VECTORS(j, part, chain) {
          store(h_out + j, load(h + j, part) + load(branch + j, part), part);
          const vf v = load(h_out + j, part);
          squares.chain[chain] += v * v;
        });
    h = h_out;
  } else if (branch) {
    Sums branch_squares;
    for_vectors(
        d, LOOPLM_VECTORS(j, part, chain) {
          const vf v = load(branch + j, part);
          branch_squares.chain[chain] += v * v;
        });
    const float s = inverse_rms(branch_squares, d, eps);
    for_vectors(
        d, LOOPLM_VECTORS(j, part, chain) {
          store(h_out + j, load(h + j, part) + load(branch + j, part) * s * load(w_branch + j, part), part);
          const vf v = load(h_out + j, part);  // as stored, so that the backward pass and a recomputation see the same value
          squares.chain[chain] += v * v;
        });
    h = h_out;  // the input of the second norm
  } else {
    for_vectors(
        d, LOOPLM_VECTORS(j, part, chain) {
          const vf v = load(h + j, part);
          squares.chain[chain] += v * v;
        });
  }
  if (!w_next) return;
  const float s = inverse_rms(squares, d, eps);
  for_vectors(
      d, LOOPLM_VECTORS(j, part, chain) { store(x + j, load(h + j, part) * s * load(w_next + j, part), part); });
}

// y = v·s·w:  ∂v = s w ∂y - v s³ mean(∂y w v),  ∂w += ∂y v s.  RowScale holds s and shrink = s³ mean(∂y w v) of one row.
struct RowScale {
  float s, shrink;
  RowScale(const Sums& squares, const Sums& products, int64_t d, double eps) {
    s = inverse_rms(squares, d, eps);
    shrink = s * s * s * (products.total() / float(d));
  }
};

enum class Branch { none, plain, normed };

// dw: sums of this block of rows, [d] for w_next, then [d] for w_branch
template <class E, bool Next, Branch branch_kind>
inline void norm_row_backward(int64_t d, double eps, const E* h_out, const E* branch, const E* w_branch, const E* w_next,
                              const E* dx, float* dh, E* dbranch, float* dw) {
  Sums squares, products, branch_squares, branch_products;
  if constexpr (Next)
    for_vectors(
        d, LOOPLM_VECTORS(j, part, chain) {
          const vf v = load(h_out + j, part);
          squares.chain[chain] += v * v;
          products.chain[chain] += load(dx + j, part) * load(w_next + j, part) * v;
        });
  const RowScale next(squares, products, d, eps);
  for_vectors(
      d, LOOPLM_VECTORS(j, part, chain) {
        vf g = load(dh + j, part);
        if constexpr (Next) {
          const vf v = load(h_out + j, part), dy = load(dx + j, part) * next.s;
          g += dy * load(w_next + j, part) - v * next.shrink;
          store(dh + j, g, part);
          store(dw + j, load(dw + j, part) + dy * v, part);
        }
        if constexpr (branch_kind == Branch::plain) store(dbranch + j, g, part);
        if constexpr (branch_kind == Branch::normed) {
          const vf v = load(branch + j, part);
          branch_squares.chain[chain] += v * v;
          branch_products.chain[chain] += g * load(w_branch + j, part) * v;
        }
      });
  if constexpr (branch_kind == Branch::normed) {
    const RowScale scale(branch_squares, branch_products, d, eps);
    for_vectors(
        d, LOOPLM_VECTORS(j, part, chain) {
          const vf v = load(branch + j, part), dy = load(dh + j, part) * scale.s;
          store(dbranch + j, dy * load(w_branch + j, part) - v * scale.shrink, part);
          store(dw + d + j, load(dw + d + j, part) + dy * v, part);
        });
  }
}

template <class E, bool Next, Branch branch_kind>
void norm_rows_backward(Context& ctx, int64_t n, int64_t d, double eps, const E* h_out, const E* branch, const E* w_branch,
                        const E* w_next, const E* dx, float* dh, E* dbranch, float* dw_branch, float* dw_next) {
  const BlockSums blocks(ctx, n, d, 2 * d);
  blocks.run([=](int64_t begin, int64_t end, float* dw) {
    for (int64_t i = begin * d; i < end * d; i += d)
      norm_row_backward<E, Next, branch_kind>(d, eps, h_out + i, branch + i, w_branch, w_next, dx + i, dh + i, dbranch + i, dw);
  });
  if (Next && dw_next) blocks.add_to(dw_next, 0, d);
  if (branch_kind == Branch::normed && dw_branch) blocks.add_to(dw_branch, d, d);
}

template <class E>
int residual_norm_typed(void* ctx, int64_t n, int64_t d, double eps, const void* h, const void* branch, const void* w_branch,
                        const void* w_next, void* h_out, void* x) {
  const auto *from = static_cast<const E*>(h), *added = static_cast<const E*>(branch), *wb = static_cast<const E*>(w_branch),
             *wn = static_cast<const E*>(w_next);
  auto *to = static_cast<E*>(h_out), *normed = static_cast<E*>(x);
  for_rows(*static_cast<Context*>(ctx), n, d, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * d; i < end * d; i += d)
      norm_row(d, eps, from + i, added ? added + i : nullptr, wb, wn, to + i, normed + i);
  });
  return 0;
}

template <class E>
int residual_norm_backward_typed(void* ctx, int64_t n, int64_t d, double eps, const void* h_out, const void* branch,
                                 const void* w_branch, const void* w_next, const void* dx, void* dh, void* dbranch,
                                 void* dw_branch, void* dw_next) {
  if (n <= 0 || d <= 0 || (!dx && !branch)) return 0;
  const auto rows = dx && branch
                        ? w_branch ? norm_rows_backward<E, true, Branch::normed> : norm_rows_backward<E, true, Branch::plain>
                    : dx       ? norm_rows_backward<E, true, Branch::none>
                    : w_branch ? norm_rows_backward<E, false, Branch::normed>
                               : norm_rows_backward<E, false, Branch::plain>;
  rows(*static_cast<Context*>(ctx), n, d, eps, static_cast<const E*>(h_out), static_cast<const E*>(branch),
       static_cast<const E*>(w_branch), static_cast<const E*>(w_next), static_cast<const E*>(dx), static_cast<float*>(dh),
       static_cast<E*>(dbranch), static_cast<float*>(dw_branch), static_cast<float*>(dw_next));
  return 0;
}

}  // namespace

int residual_norm(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h, const void* branch,
                  const void* w_branch, const void* w_next, void* h_out, void* x) {
  return (dt == LOOP_BF16 ? residual_norm_typed<bf16> : residual_norm_typed<float>)(ctx, n, d, eps, h, branch, w_branch, w_next,
                                                                                    h_out, x);
}

int residual_norm_backward(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h_out, const void* branch,
                           const void* w_branch, const void* w_next, const void* dx, void* dh, void* dbranch, void* dw_branch,
                           void* dw_next) {
  return (dt == LOOP_BF16 ? residual_norm_backward_typed<bf16>
                          : residual_norm_backward_typed<float>)(ctx, n, d, eps, h_out, branch, w_branch, w_next, dx, dh, dbranch,
                                                                 dw_branch, dw_next);
}

}  // namespace looplm::cpu::LOOPLM_ISA
