// Everything that .cu files need. nvcc compiles them to GPU code. g++ compiles the same files against cuda/emulator, which
// runs a block as one fiber per thread and detects errors that a GPU would not report. Kernels are ordinary CUDA:
//
//   threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, __shfl_*_sync, __any_sync …, atomicAdd …, __ldg,
//   float4 … and the host's cudaMalloc, cudaMemcpyAsync, streams, graphs … keep CUDA's names. emulator/device.h and
//   emulator/runtime.h list those that exist; add what you need. This file has the rest: shared memory, launches, bf16,
//   cp.async, ldmatrix, mma.
//
// How to write a kernel
//   * Access shared memory only through Shared<T>: a plain T* with nvcc, a checked pointer in the emulator. Declare it with
//     SHARED_ARRAY(float, tile, 64 * 65), or take a part of the dynamic memory with dynamic_shared<bf16>(byte_offset, count).
//     Each array has its own bounds, so give every tile a separate one. Read an element into a variable of its type, never
//     into `auto`. shared_cast<float4>(tile + i)[0] reads a vector; the address must be a multiple of its size.
//   * Vectors in global memory: load<float4>(pointer), store(pointer, vector). They must be aligned to their size.
//   * Blocks are one-dimensional. If a warp function is used, their size is a multiple of 32: lane_id(), warp_id().
//   * Every thread of a block must reach every __syncthreads (return early only if no barrier follows). Every lane of the
//     mask must reach every shuffle, and all 32 lanes every load_matrix and mma.
//   * Sums have a fixed order: use warp_sum and block_sum; there are no float atomics.
//   * Two kernels round alike only if the code says how. The compiler fuses products and sums into fma as it likes,
//     differently in every kernel and in every copy of an unrolled loop. Code whose bits must match other code, or another
//     tile, uses fmaf, __fmul_rn and __fadd_rn (in double __dmul_rn and __dadd_rn), which the compiler never changes. Products
//     without sums, and sums without products, do not need them. test/long/cuda-build.test.ts checks the kernels for this.
//   * Launching an empty grid does nothing. launch raises the limit of dynamic shared memory if necessary.
//
// One file with g++ (link cuda/emulator/emulator.cpp):
//   g++ -std=c++20 -O2 -Wall -Wextra -Wno-unknown-pragmas -x c++ -c cuda/norm.cu
// One file with nvcc:
//   nvcc -std=c++20 -O3 -gencode arch=compute_80,code=sm_80 -Xptxas -v -c cuda/norm.cu
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulator/device.h"
#endif

namespace looplm::cuda {

constexpr unsigned full_warp = 0xFFFFFFFFu;

__device__ __forceinline__ int lane_id() { return int(threadIdx.x & 31); }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x >> 5); }

#ifdef __CUDACC__

// ---- launches ----

namespace detail {
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   bool cooperative, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    const cudaError_t raised = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (raised != cudaSuccess) return raised;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}
}  // namespace detail

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  return detail::launch(kernel, grid, block, shared_bytes, stream, false, arguments...);
}
// Runs all blocks at the same time, so that they can use grid_barrier(). The grid must fit on the device.
template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                               Arguments&&... arguments) {
  return detail::launch(kernel, grid, block, shared_bytes, stream, true, arguments...);
}

// ---- shared memory ----

template <class T>
using Shared = T*;

#define SHARED_ARRAY(T, name, count)                \
  __shared__ __align__(16) T name##_storage[count]; \
  T* const name = name##_storage

template <class T>
__device__ __forceinline__ Shared<T> dynamic_shared(size_t byte_offset, [[maybe_unused]] size_t count) {
  extern __shared__ __align__(128) unsigned char looplm_dynamic_shared[];
  return reinterpret_cast<T*>(looplm_dynamic_shared + byte_offset);
}
template <class U, class T>
__device__ __forceinline__ U* shared_cast(T* pointer) {
  return reinterpret_cast<U*>(pointer);
}
template <class T>
__device__ __forceinline__ uint32_t shared_address(const T* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// ---- global memory ----

template <class V, class T>
__device__ __forceinline__ V load(const T* pointer) {
  return *reinterpret_cast<const V*>(pointer);
}
template <class T, class V>
__device__ __forceinline__ void store(T* pointer, V value) {
  *reinterpret_cast<V*>(pointer) = value;
}

// Prefetches the cache line of `pointer` into the L2 cache.
__device__ __forceinline__ void prefetch(const void* pointer) { asm volatile("prefetch.global.L2 [%0];" ::"l"(pointer)); }

// ---- barriers ----

// Waits until `threads` threads of the block have reached barrier `id` (1 to 15; 0 is __syncthreads). Whole warps take part.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Arrives at the barrier without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- cp.async ----

// Copies 16, 8 or 4 bytes from global to shared memory without registers. Reads only the first `valid` bytes; the others
// become 0. The issuing thread sees the data after copy_async_wait, other threads after a barrier that follows it.
template <int bytes = 16, class T, class U>
__device__ __forceinline__ void copy_async(T* to, const U* from, int valid = bytes) {
  static_assert(bytes == 16 || bytes == 8 || bytes == 4);
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(bytes), "r"(valid)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `groups` of this thread's committed groups are under way.
template <int groups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// ---- bf16 ----

struct __align__(2) bf16 {
  uint16_t bits;
};
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ bf16 to_bf16(float x) {  // to nearest, ties to even; NaN stays NaN
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
// Two bf16 in one register, the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// a · b + c in both halves, each rounded once.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// 2^x with an error of two or three units in the last place; results below 2^-126 become 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- tensor cores ----

// Loads 8 × 8 matrices of 16-bit elements. Lanes 8i to 8i + 7 give the addresses of the rows of matrix i (16 bytes, aligned).
// Register i of lane l then holds elements 2(l % 4) and 2(l % 4) + 1 of row l / 4 of matrix i; with _transposed, those rows
// of column l / 4.
template <class T>
__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], const T* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
template <class T>
__device__ __forceinline__ void load_matrix(uint32_t (&r)[2], const T* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
template <class T>
__device__ __forceinline__ void load_matrix_transposed(uint32_t (&r)[4], const T* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
template <class T>
__device__ __forceinline__ void load_matrix_transposed(uint32_t (&r)[2], const T* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// c [16 × 8] += a [16 × 16] · b [16 × 8], bf16 products summed in float32. With g = lane / 4, p = 2 (lane % 4), a lane holds
//   a[0] = A[g][p, p+1]   a[1] = A[g+8][p, p+1]   a[2] = A[g][p+8, p+9]   a[3] = A[g+8][p+8, p+9]
//   b0 = B[p, p+1][g]     b1 = B[p+8, p+9][g]     c[0, 1] = C[g][p, p+1]  c[2, 3] = C[g+8][p, p+1]
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif  // __CUDACC__

// ---- for nvcc and g++ ----

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float bf16_low(uint32_t packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float bf16_high(uint32_t packed) { return __uint_as_float(packed & 0xFFFF0000u); }

// Blocks of a kernel that fit on a multiprocessor of the current device at once, given the registers that it really uses. The
// answer is cached per device, kernel and shape, because asking the runtime takes microseconds, as long as some kernels run.
template <class... Parameters>
int resident_blocks(int device, void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  struct Answer {
    int device;
    void (*kernel)(Parameters...);
    int threads;
    size_t shared_bytes;
    int blocks;
  };
  static thread_local std::vector<Answer> answers;
  for (const Answer& a : answers)
    if (a.device == device && a.kernel == kernel && a.threads == threads && a.shared_bytes == shared_bytes) return a.blocks;
  int blocks = 0;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  answers.push_back({device, kernel, threads, shared_bytes, blocks});
  return blocks;
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}

// Sums over groups of `width` neighbouring lanes, in a fixed order. Every lane of the warp takes part and gets its group's
// sum.
template <int width = 32, class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int distance = width / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(full_warp, x, distance);
  return x;
}
template <int width = 32, class T>
__device__ __forceinline__ T warp_max(T x) {
#pragma unroll
  for (int distance = width / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(full_warp, x, distance);
    x = other > x ? other : x;
  }
  return x;
}

// Sums over the block, in a fixed order. Every thread takes part and gets the sum. scratch: one element per warp, free again
// when the function returns.
template <class T>
__device__ __forceinline__ T block_sum(T x, Shared<T> scratch) {
  x = warp_sum(x);
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  T sum = scratch[0];
  for (int warp = 1; warp < int(blockDim.x / 32); ++warp) sum += T(scratch[warp]);
  __syncthreads();
  return sum;
}
template <class T>
__device__ __forceinline__ T block_max(T x, Shared<T> scratch) {
  x = warp_max(x);
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  T largest = scratch[0];
  for (int warp = 1; warp < int(blockDim.x / 32); ++warp) {
    const T other = scratch[warp];
    largest = other > largest ? other : largest;
  }
  __syncthreads();
  return largest;
}

}  // namespace looplm::cuda

// A barrier for all blocks of a cooperative launch. Every block then sees the writes of all blocks before it.
#ifdef __CUDACC__
#include <cooperative_groups.h>
namespace looplm::cuda {
__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }
}  // namespace looplm::cuda
#endif
