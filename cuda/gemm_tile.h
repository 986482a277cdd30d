// Shared by the matrix product kernels: the order of blocks, tiles of activations in shared memory, and the output.
#pragma once
#include "cublaslt.h"
#include "vector.h"

namespace looplm::cuda {

// Orders blocks in groups of 16 tile rows, column by column. Blocks that run at the same time share operands in the L2 cache,
// and a weight is read from memory once per 2048 rows of activations.
__device__ __forceinline__ void tile_of(int64_t block, int64_t tiles_m, int64_t tiles_n, int64_t& tile_m, int64_t& tile_n) {
  constexpr int64_t most = 16;
  const int64_t per_group = most * tiles_n, group = block / per_group, first = group * most;
  const int64_t height = tiles_m - first < most ? tiles_m - first : most, within = block - group * per_group;
  tile_m = first + within % height;
  tile_n = within / height;
}

// Tiles in shared memory have the layout of global memory, except that the 16-byte chunks of each row are permuted depending
// on the row. Then the 8 rows of a column of chunks (ldmatrix) are on different banks, and so are the chunks of a row
// (cp.async), without padding.
template <int ROWS, int COLUMNS>
struct Tile {
  static constexpr int count = ROWS * COLUMNS, chunks = COLUMNS / 8;
  static_assert(chunks == 2 || chunks == 4 || chunks % 8 == 0);

  // Element offset of row `row` + `r` with `row` a multiple of 8 and r < 8; column: a multiple of 8.
  static __device__ __forceinline__ int at(int row, int r, int column) {
    return (row + r) * COLUMNS + (column / 8 ^ (chunks < 8 ? r / (8 / chunks) : r)) * 8;
  }

  // Aligned: rows start at multiples of 16 bytes. Elements outside `rows` × `columns` become 0.
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
        copy_async<16>(tile + at(r & ~7, r & 7, column), valid > 0 ? p : from, 2 * valid);
      } else {
        const auto pair = [&](int i) {
          return i >= valid ? 0u : i + 1 >= valid ? uint32_t(p[i].bits) : uint32_t(p[i + 1].bits) << 16 | p[i].bits;
        };
        shared_cast<uint4>(tile + at(r & ~7, r & 7, column))[0] = uint4{pair(0), pair(2), pair(4), pair(6)};
      }
    }
  }
};

// Stores columns `column` (even) and `column` + 1 of a row of C, if they are inside.
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
