// Reads and writes rows as float32 registers, with 16-byte accesses where the addresses allow it.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "simt.h"

namespace looplm::cuda {

// Elements of T in 16 bytes: how many one thread handles at a time.
template <class T>
constexpr int wide = 16 / int(sizeof(T));

// Whether rows of `d` elements can be read `width` at a time, that is whether everything is a multiple of 16 bytes.
inline bool vectorizable(int64_t d, int width, std::initializer_list<const void*> pointers) {
  bool aligned = d % width == 0;
  for (const void* p : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return aligned;
}

// Threads of a block that processes a row of `d` elements, `width` at a time: at least one warp, at most `most`.
inline int row_threads(int64_t d, int width, int most = 256) {
  const int64_t needed = (d + 32 * width - 1) / (32 * width) * 32;
  return needed < 32 ? 32 : needed < most ? int(needed) : most;
}

// Number of blocks for kernels whose blocks loop over rows: as many as the device holds at once, but at most `most` per
// multiprocessor and one per row.
template <class Kernel>
int64_t row_blocks(int device, Kernel kernel, int64_t rows, int threads, size_t shared_bytes, int most = 32) {
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (rows <= processors) return rows;
  return std::min(rows, processors * int64_t(std::clamp(resident_blocks(device, kernel, threads, shared_bytes), 1, most)));
}

// Dynamic shared memory that a block may use, in bytes, if its kernel declares at most 2 KiB of static shared memory.
inline size_t dynamic_limit(int device) {
  int limit = 48 * 1024;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return size_t(limit) - 2048;
}

template <int W>
__device__ __forceinline__ void read(const float* p, float (&x)[W]) {
  if constexpr (W % 4 == 0) {
#pragma unroll
    for (int i = 0; i < W; i += 4) {
      const float4 v = load<float4>(p + i);
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < W; i++) x[i] = p[i];
  }
}
template <int W>
__device__ __forceinline__ void read(const bf16* p, float (&x)[W]) {
  const auto pair = [&](int i, uint32_t two) { x[i] = bf16_low(two), x[i + 1] = bf16_high(two); };
  if constexpr (W == 8) {
    const uint4 v = load<uint4>(p);
    pair(0, v.x), pair(2, v.y), pair(4, v.z), pair(6, v.w);
  } else if constexpr (W == 4) {
    const uint2 v = load<uint2>(p);
    pair(0, v.x), pair(2, v.y);
  } else {
#pragma unroll
    for (int i = 0; i < W; i++) x[i] = to_float(p[i]);
  }
}
template <int W>
__device__ __forceinline__ void write(float* p, const float (&x)[W]) {
  if constexpr (W % 4 == 0) {
#pragma unroll
    for (int i = 0; i < W; i += 4) store(p + i, float4{x[i], x[i + 1], x[i + 2], x[i + 3]});
  } else {
#pragma unroll
    for (int i = 0; i < W; i++) p[i] = x[i];
  }
}
template <int W>
__device__ __forceinline__ void write(bf16* p, const float (&x)[W]) {
  if constexpr (W == 8)
    store(p, uint4{pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])});
  else if constexpr (W == 4) store(p, uint2{pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])});
  else {
#pragma unroll
    for (int i = 0; i < W; i++) p[i] = to_bf16(x[i]);
  }
}

// The same for 16 bytes of shared memory, that is W = wide<T> elements.
template <class T>
__device__ __forceinline__ void read_shared(Shared<T> p, float (&x)[wide<T>]) {
  const uint4 v = shared_cast<uint4>(p)[0];
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(T) == 2) x[2 * i] = bf16_low(words[i]), x[2 * i + 1] = bf16_high(words[i]);
    else x[i] = __uint_as_float(words[i]);
  }
}
template <class T>
__device__ __forceinline__ void write_shared(Shared<T> p, const float (&x)[wide<T>]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(T) == 2) words[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
    else words[i] = __float_as_uint(x[i]);
  }
  shared_cast<uint4>(p)[0] = uint4{words[0], words[1], words[2], words[3]};
}

// Sums two numbers over the block, in a fixed order. scratch: 64 elements.
template <class T>
__device__ __forceinline__ void block_sums(T& a, T& b, Shared<T> scratch) {
  a = warp_sum(a), b = warp_sum(b);
  if (lane_id() == 0) scratch[warp_id()] = a, scratch[32 + warp_id()] = b;
  __syncthreads();
  a = scratch[0], b = scratch[32];
  for (int warp = 1; warp < int(blockDim.x / 32); warp++) a += T(scratch[warp]), b += T(scratch[32 + warp]);
  __syncthreads();
}

// Σ w·row computed by one warp; all lanes get it. row: a function of (first column, W values).
template <int W, class T, class Row>
__device__ __forceinline__ float warp_dot(int64_t d, const T* w, Row row) {
  float sum = 0, x[W], y[W];
  for (int64_t j = lane_id() * W; j < d; j += 32 * W) {
    row(j, x);
    read<W>(w + j, y);
#pragma unroll
    for (int k = 0; k < W; k++) sum = fmaf(x[k], y[k], sum);
  }
  return warp_sum(sum);
}

}  // namespace looplm::cuda
