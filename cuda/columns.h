// Column sums of a matrix in a fixed order. Every block of a kernel keeps the sums of its rows; this adds those of all
// blocks.
#pragma once
#include "context.h"

namespace looplm::cuda {

// Blocks per multiprocessor for kernels that sum columns: enough to keep memory busy, but every block writes one more row of
// sums. The number of blocks, and so the order of the sums, depends on the chip.
constexpr int column_blocks = 4;

// out[j] += Σ_b partial[b · stride + j] for j < count.
int add_partials(Context& c, int blocks, int64_t stride, int64_t count, const float* partial, void* out);

// Size, in floats, of a block's column sums in shared memory for `d` columns. Thread t keeps column j + k of its W columns at
// (j / W + k · …) · threads + t, so that the accesses of a warp use all 32 banks.
inline size_t column_floats(int64_t d, int threads, int width) {
  return size_t(ceil_div(d, int64_t(threads) * width)) * size_t(threads) * size_t(width);
}

}  // namespace looplm::cuda
