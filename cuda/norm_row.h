// RMSNorm of one row by a block, with the residual connection (math.md §1). Rows are read and written through functions of
// (first column, W values), so a row may be in registers, shared or global memory. A thread handles the same columns in every
// pass. All kernels that use this code get the same bits, because every product in a sum is an explicit fma.
#pragma once
#include "vector.h"

namespace looplm::cuda {

// This thread's part of Σ v².
template <int W, class Row>
__device__ __forceinline__ float sum_of_squares(int64_t d, Row row) {
  float v[W], square = 0;
  for (int j = int(threadIdx.x) * W, step = int(blockDim.x) * W; j < d; j += step) {
    row(j, v);
#pragma unroll
    for (int k = 0; k < W; k++) square = fmaf(v[k], v[k], square);
  }
  return square;
}

// 1 / RMS of a row. square: this thread's part of the sum of squares. scratch: one float per warp.
__device__ __forceinline__ float inverse_rms(int64_t d, float eps, float square, Shared<float> scratch) {
  return 1 / sqrtf(block_sum(square, scratch) / float(d) + eps);
}

// x = RMS(row; w)
template <int W, class T, class Row, class Put>
__device__ __forceinline__ void put_normed(int64_t d, float eps, float square, const T* weight, Shared<float> scratch, Row row,
                                           Put put) {
  const float scale = inverse_rms(d, eps, square, scratch);
  float v[W], w[W];
  for (int j = int(threadIdx.x) * W, step = int(blockDim.x) * W; j < d; j += step) {
    row(j, v);
    read<W>(weight + j, w);
#pragma unroll
    for (int k = 0; k < W; k++) v[k] *= scale * w[k];
    put(j, v);
  }
}

// Writes h + RMS(branch; w) to `put`, rounded to T. Returns this thread's part of its sum of squares.
template <int W, class T, class Row, class Put>
__device__ __forceinline__ float add_normed(int64_t d, float eps, const T* branch, const T* weight, Shared<float> scratch, Row h,
                                            Put put) {
  const auto of_branch = [&](int j, float(&v)[W]) { read<W>(branch + j, v); };
  const float scale = inverse_rms(d, eps, sum_of_squares<W>(d, of_branch), scratch);
  float v[W], r[W], w[W], square = 0;
  for (int j = int(threadIdx.x) * W, step = int(blockDim.x) * W; j < d; j += step) {
    of_branch(j, v);
    read<W>(weight + j, w);
    h(j, r);
#pragma unroll
    for (int k = 0; k < W; k++) {
      r[k] = to_float(from_float<T>(fmaf(v[k] * scale, w[k], r[k])));
      square = fmaf(r[k], r[k], square);
    }
    put(j, r);
  }
  return square;
}

// Writes h + branch to `put`, in the same way as add_normed.
template <int W, class T, class Row, class Put>
__device__ __forceinline__ float add_plain(int64_t d, const T* branch, Row h, Put put) {
  float r[W], b[W], square = 0;
  for (int j = int(threadIdx.x) * W, step = int(blockDim.x) * W; j < d; j += step) {
    read<W>(branch + j, b);
    h(j, r);
#pragma unroll
    for (int k = 0; k < W; k++) {
      r[k] = to_float(from_float<T>(__fadd_rn(r[k], b[k])));
      square = fmaf(r[k], r[k], square);
    }
    put(j, r);
  }
  return square;
}

}  // namespace looplm::cuda
