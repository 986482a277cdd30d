// AdamW with decoupled weight decay (math.md §6), and the gradient norm for clipping.
#include <math.h>
#include <stdio.h>

#include "rows.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

constexpr int64_t BLOCK = 16384;  // elements per task

typedef float half_vector __attribute__((vector_size(W * 2), aligned(4), may_alias));

double block_sum_squares(const float* x, int64_t count) {
  constexpr int64_t H = W / 2;
  doubles chain[4] = {};
  int64_t i = 0;
  for (; i + 4 * H <= count; i += 4 * H)
    for (int c = 0; c < 4; c++) {
      const doubles v = __builtin_convertvector(*reinterpret_cast<const half_vector*>(x + i + c * H), doubles);
      chain[c] += v * v;
    }
  const doubles lanes = (chain[0] + chain[1]) + (chain[2] + chain[3]);
  double total = 0;
  for (int k = 0; k < H; k++) total += lanes[k];
  for (; i < count; i++) total += double(x[i]) * double(x[i]);
  return total;
}

inline vf vsqrt(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < W; i++) x[i] = sqrtf(x[i]);
  return x;
#endif
}

// m = β1 m + (1-β1) g,   v = β2 v + (1-β2) g²,   p -= lr (m̂ / (√v̂ + ε) + wd p),   m̂ = m / (1-β1^step),   v̂ = v / (1-β2^step)
template <class E>
int step(Context& ctx, const LoopAdamW& a, float* truth, E* rounded) {
  const auto* gradient = static_cast<const float*>(a.gradient);
  auto *first = static_cast<float*>(a.first_moment), *second = static_cast<float*>(a.second_moment);
  const float beta1 = float(a.beta1), rest1 = float(1 - a.beta1), beta2 = float(a.beta2), rest2 = float(1 - a.beta2);
  const float rate = float(a.learning_rate / (1 - pow(a.beta1, double(a.step)))),
              correction2 = float(1 / (1 - pow(a.beta2, double(a.step))));
  const float epsilon = float(a.epsilon), decay = float(a.learning_rate * a.weight_decay), scale = float(a.gradient_scale);
  for_rows(ctx, (a.count + BLOCK - 1) / BLOCK, BLOCK, [=, &a](int64_t begin, int64_t end, int) {
    const int64_t i = begin * BLOCK, count = (end * BLOCK < a.count ? end * BLOCK : a.count) - i;
    for_vectors(
        count, LOOPLM_VECTORS(j, part, chain) {
          const int64_t at = i + j;
          const vf g = load(gradient + at, part) * scale;
          const vf m = load(first + at, part) * beta1 + g * rest1, v = load(second + at, part) * beta2 + g * g * rest2;
          vf p = load(truth + at, part);
          p -= rate * m / (vsqrt(v * correction2) + epsilon) + decay * p;
          store(first + at, m, part);
          store(second + at, v, part);
          store(truth + at, p, part);
          if constexpr (sizeof(E) == 2) store(rounded + at, p, part);
        });
  });
  return 0;
}

}  // namespace

int sum_squares(void* context, LoopDType, int64_t arrays, const int64_t* host_counts, const void* const* host_x,
                double* host_out) {
  auto& ctx = *static_cast<Context*>(context);
  for (int64_t a = 0; a < arrays; a++) {
    const auto* x = static_cast<const float*>(host_x[a]);
    const int64_t count = host_counts[a], blocks = (count + BLOCK - 1) / BLOCK;
    auto* parts = static_cast<double*>(ctx.pool.scratch(ctx.pool.threads(), size_t(blocks) * sizeof(double)));
    ctx.pool.run(blocks, [=](int64_t task, int) {
      const int64_t begin = task * BLOCK, left = count - begin;
      parts[task] = block_sum_squares(x + begin, left < BLOCK ? left : BLOCK);
    });
    host_out[a] = 0;
    for (int64_t b = 0; b < blocks; b++) host_out[a] += parts[b];
  }
  return 0;
}

int adamw(void* context, LoopDType dt, const LoopAdamW* a) {
  auto& ctx = *static_cast<Context*>(context);
  if (dt != LOOP_BF16) return step(ctx, *a, static_cast<float*>(a->parameter), static_cast<float*>(nullptr));
  if (!a->master) {
    snprintf(ctx.error, sizeof ctx.error, "adamw: bfloat16 parameters need a float32 master");
    return 1;
  }
  return step(ctx, *a, static_cast<float*>(a->master), static_cast<bf16*>(a->parameter));
}

template <class E>
static int average(Context& ctx, int64_t count, float weight, const E* x, float* mean, E* parameter) {
  for_rows(ctx, (count + BLOCK - 1) / BLOCK, BLOCK, [=](int64_t begin, int64_t end, int) {
    const int64_t first = begin * BLOCK, last = end * BLOCK < count ? end * BLOCK : count;
    for (int64_t i = first; i < last; i += W) {
      const int lanes = int(last - i < W ? last - i : W);
      const vf old = lanes == W ? load(mean + i) : load_part(mean + i, lanes),
               now = lanes == W ? load(x + i) : load_part(x + i, lanes);
      const vf next = old + weight * (now - old);
      if (lanes == W) {
        store(mean + i, next);
        if (parameter) store(parameter + i, next);
      } else {
        store_part(mean + i, next, lanes);
        if (parameter) store_part(parameter + i, next, lanes);
      }
    }
  });
  return 0;
}

int moving_average(void* ctx, LoopDType dt, int64_t count, double weight, const void* x, void* mean, void* parameter) {
  auto& context = *static_cast<Context*>(ctx);
  if (dt == LOOP_BF16)
    return average(context, count, float(weight), static_cast<const bf16*>(x), static_cast<float*>(mean),
                   static_cast<bf16*>(parameter));
  return average(context, count, float(weight), static_cast<const float*>(x), static_cast<float*>(mean),
                 static_cast<float*>(parameter));
}

}  // namespace looplm::cpu::LOOPLM_ISA
