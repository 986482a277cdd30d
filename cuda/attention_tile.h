// Tiles of the tensor-core attention kernels, for blocks of four warps. A tile has bf16 rows in shared memory, padded by 16
// bytes, so that the eight rows of a matrix are on different banks.
#pragma once
#include "attention.h"

namespace looplm::cuda {

constexpr int attention_threads = 128;

template <int head_dim>
constexpr int tile_pitch = head_dim + 8;

// Asynchronously loads the rows [first, first + rows) of a run of keys. base: the first column wanted, in qkv or any matrix
// with that row width. Rows from `end` on and columns beyond the head become 0.
template <int D, int rows>
__device__ __forceinline__ void load_tile(Shared<bf16> tile, const bf16* base, int64_t row_width, int head_dim, const KeyRun& run,
                                          int first, int end) {
  constexpr int lanes = D % 64 == 0 ? 8 : 4, pass = attention_threads / lanes;  // lanes per row; rows at a time
  const int lane = int(threadIdx.x) % lanes;
#pragma unroll
  for (int row = int(threadIdx.x) / lanes; row < rows; row += pass) {
    const int key = first + row;
    const bf16* from = base + (key < end ? run.token(key) * row_width : 0);
#pragma unroll
    for (int column = 8 * lane; column < D; column += 8 * lanes) {
      const bool inside = key < end && column < head_dim;
      copy_async(tile + row * tile_pitch<D> + column, from + (inside ? column : 0), inside ? 16 : 0);
    }
  }
}

// Loads an A operand: 16 rows from `row` on, columns [16 k, 16 k + 16).
template <int D>
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], Shared<bf16> tile, int row, int k) {
  load_matrix(a, tile + (row + lane_id() % 16) * tile_pitch<D> + 16 * k + lane_id() / 16 * 8);
}

// c [16 · m × n] += A [16 · m rows from `row` on] · B [n rows]ᵀ over D columns: the scores of queries and keys.
template <int D, int m, int n>
__device__ __forceinline__ void multiply_transposed(float (&c)[m][n / 8][4], Shared<bf16> a_tile, int row, Shared<bf16> b_tile) {
  const int b_row = lane_id() % 8 + lane_id() / 16 * 8, b_column = lane_id() / 8 % 2 * 8;
#pragma unroll 4  // all eight steps of head size 128 at once would need too many registers
  for (int k = 0; k < D / 16; ++k) {
    uint32_t a[m][4];
#pragma unroll
    for (int i = 0; i < m; ++i) load_rows<D>(a[i], a_tile, row + 16 * i, k);
#pragma unroll
    for (int j = 0; j < n / 16; ++j) {
      uint32_t b[4];
      load_matrix(b, b_tile + (16 * j + b_row) * tile_pitch<D> + 16 * k + b_column);
#pragma unroll
      for (int i = 0; i < m; ++i) {
        mma_bf16(c[i][2 * j], a[i], b[0], b[1]);
        mma_bf16(c[i][2 * j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Rounds the accumulators of one product into the A operand of the next.
template <int m, int n>
__device__ __forceinline__ void round_weights(uint32_t (&packed)[m][n / 16][4], const float (&weights)[m][n / 8][4]) {
#pragma unroll
  for (int i = 0; i < m; ++i)
#pragma unroll
    for (int k = 0; k < n / 16; ++k) {
      packed[i][k][0] = pack_bf16(weights[i][2 * k][0], weights[i][2 * k][1]);
      packed[i][k][1] = pack_bf16(weights[i][2 * k][2], weights[i][2 * k][3]);
      packed[i][k][2] = pack_bf16(weights[i][2 * k + 1][0], weights[i][2 * k + 1][1]);
      packed[i][k][3] = pack_bf16(weights[i][2 * k + 1][2], weights[i][2 * k + 1][3]);
    }
}

// c [16 · m × D] += weights [16 · m × n] · B [n rows × D].
template <int D, int m, int n>
__device__ __forceinline__ void multiply(float (&c)[m][D / 8][4], const uint32_t (&weights)[m][n / 16][4], Shared<bf16> b_tile) {
#pragma unroll
  for (int k = 0; k < n / 16; ++k)
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      uint32_t b[4];
      load_matrix_transposed(b, b_tile + (16 * k + lane_id() % 16) * tile_pitch<D> + 16 * j + lane_id() / 16 * 8);
#pragma unroll
      for (int i = 0; i < m; ++i) {
        mma_bf16(c[i][2 * j], weights[i][k], b[0], b[1]);
        mma_bf16(c[i][2 * j + 1], weights[i][k], b[2], b[3]);
      }
    }
}

// Stores the accumulators times factor[row] as bf16 rows. They pass through this warp's 16 · m rows of `tile`, which no other
// warp may still use. Row r is written to to(r); NULL: not written.
template <int D, int m, class To>
__device__ __forceinline__ void store_rows(const float (&c)[m][D / 8][4], const float (&factor)[m][2], Shared<bf16> tile, int row,
                                           int head_dim, To to) {
  const int g = lane_id() / 4, p = lane_id() % 4 * 2;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < m; ++i)
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      const Shared<bf16> at = tile + (row + 16 * i + g) * tile_pitch<D> + 8 * j + p;
      shared_cast<uint32_t>(at)[0] = pack_bf16(c[i][j][0] * factor[i][0], c[i][j][1] * factor[i][0]);
      shared_cast<uint32_t>(at + 8 * tile_pitch<D>)[0] = pack_bf16(c[i][j][2] * factor[i][1], c[i][j][3] * factor[i][1]);
    }
  __syncwarp();
  constexpr int chunks = D / 8;
#pragma unroll 4
  for (int at = lane_id(); at < 16 * m * chunks; at += 32) {
    const int r = row + at / chunks, column = at % chunks * 8;
    bf16* destination = to(r);
    if (!destination || column >= head_dim) continue;
    const uint4 eight = shared_cast<uint4>(tile + r * tile_pitch<D> + column)[0];
    store(destination + column, eight);
  }
}

}  // namespace looplm::cuda
