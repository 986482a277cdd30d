// What the kernels of matrix products share: the order of the blocks, tiles of activations in shared memory, the way out.
#pragma once
#include "cublaslt.h"
#include "vector.h"

namespace looplm::cuda {

// Blocks in groups of 8 tile rows, so that what runs together shares its operands in the L2 cache.
__device__ __forceinline__ void tile_of(int64_t block, int64_t tiles_m, int64_t tiles_n, int64_t& tile_m, int64_t& tile_n) {
  const int64_t per_group = 8 * tiles_n, group = block / per_group, first = group * 8;
  const int64_t height = tiles_m - first < 8 ? tiles_m - first : 8, within = block - group * per_group;
  tile_m = first + within % height;
  tile_n = within / height;
}

// Tiles lie in shared memory as they do in global memory; 16 bytes behind each row put the 8 rows of an ldmatrix on different
// banks.
template <int ROWS, int COLUMNS, int PAD = 8>
struct Tile {
  static constexpr int stride = COLUMNS + PAD, count = ROWS * stride;

  // `Aligned`: rows begin at multiples of 16 bytes. Outside `rows` × `columns` the tile is 0.
  template <bool Aligned, int THREADS>
  static __device__ __forceinline__ void fetch(Shared<bf16> tile, const bf16* from, int64_t ld, int64_t row0, int64_t rows,
                                               int64_t column0, int64_t columns) {
    constexpr int chunks = COLUMNS / 8;
#pragma unroll
    for (int c = int(threadIdx.x); c < ROWS * chunks; c += THREADS) {
      const int r = c / chunks, column = c % chunks * 8;
      const int64_t left = columns - column0 - column;
      const int valid = row0 + r >= rows || left <= 0 ? 0 : left < 8 ? int(left) : 8;
      const bf16* p = from + (row0 + r) * ld + column0 + column;
      if constexpr (Aligned) {
        copy_async<16>(tile + r * stride + column, valid > 0 ? p : from, 2 * valid);
      } else {
#pragma unroll
        for (int i = 0; i < 8; i++) tile[r * stride + column + i] = i < valid ? p[i] : bf16{0};
      }
    }
  }
};

// Columns `column` (even) and `column` + 1 of a row of C, where they are inside.
__device__ __forceinline__ void store_pair(const Gemm& g, int64_t row, int64_t column, float x, float y) {
  if (row >= g.m || column >= g.n) return;
  const bool both = column + 1 < g.n, together = both && g.ldc % 2 == 0 && reinterpret_cast<uintptr_t>(g.c) % 8 == 0;
  const int64_t at = row * g.ldc + column;
  if (g.real_out) {
    auto* c = static_cast<float*>(g.c) + at;
    if (together) {
      float2 out = {x, y};
      if (g.accumulate) {
        const float2 old = load<float2>(c);
        out = {old.x + x, old.y + y};
      }
      store(c, out);
    } else {
      c[0] = g.accumulate ? c[0] + x : x;
      if (both) c[1] = g.accumulate ? c[1] + y : y;
    }
  } else {
    auto* c = static_cast<bf16*>(g.c) + at;
    if (together) {
      store(c, pack_bf16(x, y));
    } else {
      c[0] = to_bf16(x);
      if (both) c[1] = to_bf16(y);
    }
  }
}

}  // namespace looplm::cuda
