// Sums over the rows of a matrix in a fixed order: every block of a kernel keeps the sums of its own rows, this adds them up.
#pragma once
#include "context.h"

namespace looplm::cuda {

// Blocks that a multiprocessor has of a kernel that sums columns: enough to keep memory busy, and each more writes another row of
// sums. Their number, and so the order of the sums, is the chip's.
constexpr int column_blocks = 4;

// out[j] += Σ_b partial[b · stride + j] for j < count
int add_partials(Context& c, int blocks, int64_t stride, int64_t count, const float* partial, void* out);

// A block's own sums of `d` columns in shared memory: thread t keeps column j + k of its W at (j / W + k · …) · threads + t, so
// that a warp's accesses meet 32 banks. Floats that it takes:
inline size_t column_floats(int64_t d, int threads, int width) {
  return size_t(ceil_div(d, int64_t(threads) * width)) * size_t(threads) * size_t(width);
}

}  // namespace looplm::cuda
