// Loops over the vectors of a row, and sums over rows that do not depend on the number of threads.
#pragma once
#include "kernels.h"

namespace looplm::cpu::LOOPLM_ISA {

typedef double doubles __attribute__((vector_size(W * 4)));  // W / 2 doubles

// A full vector, or at the end of a row its first `count` lanes.
struct Whole {};
struct Part {
  int count;
};
template <class E>
static inline vf load(const E* p, Whole) {
  return load(p);
}
template <class E>
static inline vf load(const E* p, Part part) {
  return load_part(p, part.count);
}
template <class E>
static inline void store(E* p, vf x, Whole) {
  store(p, x);
}
template <class E>
static inline void store(E* p, vf x, Part part) {
  store_part(p, x, part.count);
}
// x in the lanes that belong to the row, `other` in the rest.
static inline vf keep(vf x, vf, Whole) { return x; }
static inline vf keep(vf x, vf other, Part part) {
  const vi there = lane_numbers(Lanes()) < part.count;
  return there ? x : other;
}

// Calls f(j, Whole or Part, chain) for every vector of a row of d elements; j is its first element. `chain` cycles through
// 0..3, so that a sum over the row can use four independent accumulators.
template <class F>
static inline __attribute__((always_inline)) void for_vectors(int64_t d, F&& f) {
  int64_t j = 0;
  for (; j + 4 * W <= d; j += 4 * W) {
    f(j, Whole{}, 0);
    f(j + W, Whole{}, 1);
    f(j + 2 * W, Whole{}, 2);
    f(j + 3 * W, Whole{}, 3);
  }
  for (; j + W <= d; j += W) f(j, Whole{}, 0);
  if (j < d) f(j, Part{int(d - j)}, 0);
}
#define LOOPLM_VECTORS(j, part, chain) [&](int64_t j, auto part, [[maybe_unused]] int chain) __attribute__((always_inline))

// The same for work on several vectors at once, such as vexp. Calls f(j, Whole or Part, N), where the constant N is 4 or 1:
// the number of vectors that start at element j.
template <class F>
static inline __attribute__((always_inline)) void for_batches(int64_t d, F&& f) {
  int64_t j = 0;
  for (; j + 4 * W <= d; j += 4 * W) f(j, Whole{}, std::integral_constant<int, 4>());
  for (; j + W <= d; j += W) f(j, Whole{}, std::integral_constant<int, 1>());
  if (j < d) f(j, Part{int(d - j)}, std::integral_constant<int, 1>());
}
#define LOOPLM_BATCHES(j, part, count) [&](int64_t j, auto part, auto count) __attribute__((always_inline))

struct Sums {
  vf chain[4] = {};
  float total() const { return sum((chain[0] + chain[1]) + (chain[2] + chain[3])); }
};

// Gradients of weights are sums over rows. Rows are split into fixed blocks. Each task sums its block separately, and the
// sums are added in the order of the blocks.
struct BlockSums {
  Context& ctx;
  int64_t rows, width;  // `width` sums per block
  int64_t block, blocks, stride;
  float* parts;

  BlockSums(Context& context, int64_t n, int64_t d, int64_t sums) : ctx(context), rows(n), width(sums) {
    block = 16384 / (d > 0 ? d : 1);
    block = block < 32 ? 32 : block > 256 ? 256 : block;
    blocks = (rows + block - 1) / block;
    stride = (width + 15) / 16 * 16;
    parts = static_cast<float*>(ctx.pool.scratch(ctx.pool.threads(), size_t(blocks * stride) * sizeof(float)));
  }
  // Calls f(begin, end, sums) for every block; the sums start at zero.
  template <class F>
  void run(F&& f) const {
    ctx.pool.run(blocks, [&](int64_t task, int) {
      float* part = parts + task * stride;
      memset(part, 0, size_t(width) * sizeof(float));
      const int64_t begin = task * block, end = begin + block < rows ? begin + block : rows;
      f(begin, end, part);
    });
  }
  // out[j] += sum number first + j, for j in [0, count).
  void add_to(float* out, int64_t first, int64_t count) const {
    constexpr int64_t COLUMNS = 64;
    ctx.pool.run((count + COLUMNS - 1) / COLUMNS, [&](int64_t task, int) {
      const int64_t begin = task * COLUMNS, columns = begin + COLUMNS < count ? COLUMNS : count - begin;
      for_vectors(
          columns, LOOPLM_VECTORS(j, part, chain) {
            vf total = {};
            for (int64_t b = 0; b < blocks; b++) total += load(parts + b * stride + first + begin + j, part);
            store(out + begin + j, load(out + begin + j, part) + total, part);
          });
    });
  }
};

}  // namespace looplm::cpu::LOOPLM_ISA
