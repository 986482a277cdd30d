// C[m,n] (+)= op(A) op(B). Large products use cuBLASLt if it is installed. The kernels here do everything else, or everything
// without the library. One thread sums every element over k in ascending order (float32), or a tensor core in steps of 16
// (bfloat16), with any tile. So the result of a row depends neither on the number of rows nor on the kernel that is chosen.
#include <algorithm>

#include "context.h"
#include "gemm_tile.h"

namespace looplm::cuda {
namespace {

template <int VEC>
__device__ __forceinline__ void read_shared(Shared<float> p, float* x) {
  if constexpr (VEC == 4) {
    const float4 v = shared_cast<float4>(p)[0];
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    x[0] = p[0];
  }
}

// ---- float32: BM × BN tiles, 16 × 16 threads with (BM/16) × (BN/16) elements each, VEC neighbours at a time; the next tiles
// of A and B are loaded into registers meanwhile ----

template <bool TA, bool TB, int BM, int BN, int VEC>
__global__ void __launch_bounds__(256, 2) float_kernel(Gemm g, int64_t tiles_m, int64_t tiles_n) {
  constexpr int BK = BM == 128 ? 8 : 16, TM = BM / 16, TN = BN / 16, LA = BM * BK / 256, LB = BN * BK / 256;
  // Row strides are multiples of VEC; the padding puts a warp's stores on different banks.
  constexpr int PAD = VEC, SA = BM + PAD, SB = BN + PAD;
  SHARED_ARRAY(float, tile_a, BK* SA);  // [k][m]
  SHARED_ARRAY(float, tile_b, BK* SB);  // [k][n]
  int64_t tile_m, tile_n;
  tile_of(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
  const int64_t m0 = tile_m * BM, n0 = tile_n * BN;
  const auto *a = static_cast<const float*>(g.a), *b = static_cast<const float*>(g.b);
  const int t = int(threadIdx.x), ty = t / 16, tx = t % 16;
  float next_a[LA], next_b[LB], sum[TM][TN] = {};

  // The position of the i-th element that this thread loads. Neighbouring threads load neighbouring addresses.
  const auto at_a = [&](int i, int& m, int& k) {
    const int e = i * 256 + t;
    m = TA ? e % BM : e / BK, k = TA ? e / BM : e % BK;
  };
  const auto at_b = [&](int i, int& n, int& k) {
    const int e = i * 256 + t;
    n = TB ? e / BK : e % BN, k = TB ? e % BK : e / BN;
  };
  const auto fetch = [&](int64_t k0) {
#pragma unroll
    for (int i = 0; i < LA; i++) {
      int m, k;
      at_a(i, m, k);
      const int64_t row = m0 + m, l = k0 + k;
      next_a[i] = row < g.m && l < g.k ? a[TA ? l * g.lda + row : row * g.lda + l] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < LB; i++) {
      int n, k;
      at_b(i, n, k);
      const int64_t column = n0 + n, l = k0 + k;
      next_b[i] = column < g.n && l < g.k ? b[TB ? column * g.ldb + l : l * g.ldb + column] : 0.0f;
    }
  };
  // The position of a thread's element i in a tile: VEC neighbours, then the next ones 16 · VEC further on.
  const auto place = [](int i, int thread) { return i / VEC * 16 * VEC + thread * VEC + i % VEC; };

  fetch(0);
  for (int64_t k0 = 0; k0 < g.k; k0 += BK) {
#pragma unroll
    for (int i = 0; i < LA; i++) {
      int m, k;
      at_a(i, m, k);
      tile_a[k * SA + m] = next_a[i];
    }
#pragma unroll
    for (int i = 0; i < LB; i++) {
      int n, k;
      at_b(i, n, k);
      tile_b[k * SB + n] = next_b[i];
    }
    __syncthreads();
    if (k0 + BK < g.k) fetch(k0 + BK);
#pragma unroll
    for (int k = 0; k < BK; k++) {
      float x[TM], y[TN];
#pragma unroll
      for (int i = 0; i < TM; i += VEC) read_shared<VEC>(tile_a + k * SA + place(i, ty), x + i);
#pragma unroll
      for (int j = 0; j < TN; j += VEC) read_shared<VEC>(tile_b + k * SB + place(j, tx), y + j);
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
    }
    __syncthreads();
  }
  auto* c = static_cast<float*>(g.c);
#pragma unroll
  for (int i = 0; i < TM; i++)
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const int64_t row = m0 + place(i, ty), column = n0 + place(j, tx);
      if (row >= g.m || column >= g.n) continue;
      float& to = c[row * g.ldc + column];
      to = g.accumulate ? to + sum[i][j] : sum[i][j];
    }
}

// ---- bfloat16: BM × BN tiles, WM × WN warps, BK of k at a time in a ring of STAGES stages that cp.async fills ----

template <bool TA_, bool TB_, bool ALIGNED, int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_>
struct Shape {
  static constexpr bool TA = TA_, TB = TB_, aligned = ALIGNED;
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_, STAGES = STAGES_, threads = 32 * WM * WN;
  static constexpr int blocks = BM * BN <= 128 * 128 ? 2 : 1;  // at least this many per multiprocessor
  using TileA = Tile<TA ? BK : BM, TA ? BM : BK>;
  using TileB = Tile<TB ? BN : BK, TB ? BK : BN>;
  static constexpr size_t stage = TileA::count + TileB::count, shared_bytes = STAGES * stage * sizeof(bf16);
};

template <class S>
__global__ void __launch_bounds__(S::threads, S::blocks) tensor_kernel(Gemm g, int64_t tiles_m, int64_t tiles_n) {
  constexpr int MT = S::BM / S::WM / 16, NT = S::BN / S::WN / 8;  // 16 × 8 products per warp
  using TileA = typename S::TileA;
  using TileB = typename S::TileB;
  int64_t tile_m, tile_n;
  tile_of(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
  const int64_t m0 = tile_m * S::BM, n0 = tile_n * S::BN;
  const int lane = lane_id(), warp_m = warp_id() / S::WN * MT * 16, warp_n = warp_id() % S::WN * NT * 8;
  const auto *a = static_cast<const bf16*>(g.a), *b = static_cast<const bf16*>(g.b);
  const auto tile_a = [&](int stage) { return dynamic_shared<bf16>(2 * S::stage * stage, TileA::count); };
  const auto tile_b = [&](int stage) { return dynamic_shared<bf16>(2 * (S::stage * stage + TileA::count), TileB::count); };
  const auto fetch = [&](int64_t t) {
    const int stage = int(t % S::STAGES);
    const int64_t k0 = t * S::BK;
    if constexpr (S::TA) TileA::template fetch<S::aligned, S::threads>(tile_a(stage), a, g.lda, k0, g.k, m0, g.m);
    else TileA::template fetch<S::aligned, S::threads>(tile_a(stage), a, g.lda, m0, g.m, k0, g.k);
    if constexpr (S::TB) TileB::template fetch<S::aligned, S::threads>(tile_b(stage), b, g.ldb, n0, g.n, k0, g.k);
    else TileB::template fetch<S::aligned, S::threads>(tile_b(stage), b, g.ldb, k0, g.k, n0, g.n);
  };

  float sum[MT][NT][4] = {};
  const bool inside = m0 + warp_m < g.m && n0 + warp_n < g.n;
  const int64_t steps = (g.k + S::BK - 1) / S::BK;
  for (int64_t t = 0; t < S::STAGES - 1; t++) {
    if (t < steps) fetch(t);
    copy_async_commit();
  }
  const int i = lane / 8, r = lane % 8;  // this lane gives the address of row r of matrix i
  for (int64_t t = 0; t < steps; t++) {
    copy_async_wait<S::STAGES - 2>();
    __syncthreads();  // step t has arrived for all threads, and none still reads the stage of step t - 1
    if (t + S::STAGES - 1 < steps) fetch(t + S::STAGES - 1);
    copy_async_commit();
    if (!inside) continue;
    const Shared<bf16> from_a = tile_a(int(t % S::STAGES)), from_b = tile_b(int(t % S::STAGES));
#pragma unroll
    for (int k = 0; k < S::BK; k += 16) {
      uint32_t x[MT][4], y[NT / 2][4];
#pragma unroll
      for (int m = 0; m < MT; m++) {
        const int row = warp_m + m * 16;
        if constexpr (S::TA) load_matrix_transposed(x[m], from_a + TileA::at(k + i / 2 * 8, r, row + i % 2 * 8));
        else load_matrix(x[m], from_a + TileA::at(row + i % 2 * 8, r, k + i / 2 * 8));
      }
#pragma unroll
      for (int n = 0; n < NT / 2; n++) {
        const int column = warp_n + n * 16;
        if constexpr (S::TB) load_matrix(y[n], from_b + TileB::at(column + i / 2 * 8, r, k + i % 2 * 8));
        else load_matrix_transposed(y[n], from_b + TileB::at(k + i % 2 * 8, r, column + i / 2 * 8));
      }
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++) mma_bf16(sum[m][n], x[m], y[n / 2][n % 2 * 2], y[n / 2][n % 2 * 2 + 1]);
    }
  }
  copy_async_wait<0>();

#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        store_pair(g, m0 + warp_m + m * 16 + h * 8 + lane / 4, n0 + warp_n + n * 8 + lane % 4 * 2, sum[m][n][2 * h],
                   sum[m][n][2 * h + 1]);
}

// ---- choice of the kernel ----

template <bool TA, bool TB>
int float_gemm(Context& c, const Gemm& g) {
  const auto go = [&](auto kernel, int bm, int bn) {
    const int64_t tiles_m = ceil_div(g.m, bm), tiles_n = ceil_div(g.n, bn);
    return check(c, launch(kernel, dim3(unsigned(tiles_m * tiles_n)), dim3(256), 0, c.stream, g, tiles_m, tiles_n), "gemm");
  };
  return ceil_div(g.m, 128) * ceil_div(g.n, 64) >= 64 ? go(float_kernel<TA, TB, 128, 64, 4>, 128, 64)
                                                      : go(float_kernel<TA, TB, 32, 32, 1>, 32, 32);
}

template <bool TA, bool TB>
int tensor_gemm(Context& c, const Gemm& g) {
  const auto go = [&]<class S>(S) {
    const int64_t tiles_m = ceil_div(g.m, S::BM), tiles_n = ceil_div(g.n, S::BN);
    return check(c,
                 launch(tensor_kernel<S>, dim3(unsigned(tiles_m * tiles_n)), dim3(S::threads), S::shared_bytes, c.stream, g,
                        tiles_m, tiles_n),
                 "gemm");
  };
  const bool aligned =
      (reinterpret_cast<uintptr_t>(g.a) | reinterpret_cast<uintptr_t>(g.b)) % 16 == 0 && g.lda % 8 == 0 && g.ldb % 8 == 0;
  if (!aligned) return go(Shape<TA, TB, false, 64, 64, 64, 2, 2, 3>{});
  // Few rows: the weight is read once, by as many blocks as possible, with many loads in flight.
  if (g.m <= 16) return go(Shape<TA, TB, true, 16, 32, 128, 1, 2, 6>{});
  // Warps with 64 × 64 tiles do twice the products of 64 × 32 tiles per byte of shared memory. They need enough tiles to fill
  // the chip.
  int processors = 0;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, c.device);
  if (ceil_div(g.m, 128) * ceil_div(g.n, 256) >= processors) return go(Shape<TA, TB, true, 128, 256, 32, 2, 4, 4>{});
  if (ceil_div(g.m, 128) * ceil_div(g.n, 128) * 2 >= processors) return go(Shape<TA, TB, true, 128, 128, 32, 2, 4, 4>{});
  return go(Shape<TA, TB, true, 64, 64, 64, 2, 2, 3>{});
}

int gemm(void* ctx, LoopDType dt, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
         const void* b, int64_t ldb, void* c_, int64_t ldc, int flags) {
  const bool accumulate = flags & LOOP_GEMM_ACCUMULATE;
  const bool real_out = accumulate || (flags & LOOP_GEMM_REAL_OUT) || dt == LOOP_F32;
  const Gemm g{transpose_a != 0, transpose_b != 0, m, n, k, a, lda, b, ldb, c_, ldc, real_out, accumulate};
  return with_dtype(ctx, "gemm", dt, [&]<class T>(Context& c, T) {
    if (m == 0 || n == 0) return 0;
    if (prefers_lt(c, g) && multiply_lt(c, dt, g)) return 0;
    const auto go = [&](auto ta, auto tb) {
      if constexpr (std::is_same_v<T, float>) return float_gemm<ta(), tb()>(c, g);
      else return tensor_gemm<ta(), tb()>(c, g);
    };
    using Yes = std::true_type;
    using No = std::false_type;
    return g.transpose_a ? g.transpose_b ? go(Yes{}, Yes{}) : go(Yes{}, No{}) : g.transpose_b ? go(No{}, Yes{}) : go(No{}, No{});
  });
}

}  // namespace

void add_gemm(LoopBackend& table) { table.gemm = guarded<gemm>; }

}  // namespace looplm::cuda
