// C[m,n] = A Bᵀ with a weight of 8 or 4 bits per element. The codes are small integers, which are exact in bfloat16. The
// tensor core multiplies them with unquantized activations. The sum over a unit of k, which lies in one group, is multiplied
// with the group's scale and added in float32, unit by unit. Both bfloat16 kernels do this in the same order, so a row's bits
// depend neither on the other rows nor on the kernel. With few rows, the warps of a block share k and read the weight once;
// with many rows, blocks split m and n. float32 has a plain kernel.
#include <algorithm>
#include <numeric>

#include "gemm_tile.h"

namespace looplm::cuda {
namespace {

struct Weight {
  const uint8_t* codes;  // 16-byte aligned
  const float* scales;
  int unit, units_per_group;  // codes per unit: 32, 64 or 128
};

constexpr int slice = 32;  // elements of k that a warp multiplies at once: lane l has 8 codes of row l / 4, starting at 8 (l
                           // % 4)

// Converts eight consecutive codes to four bfloat16 pairs, in the order that needs the fewest instructions. 4 bits: (i, i +
// 4); 8 bits: (0, 2), (1, 3), (4, 6), (5, 7). 0x4300 is 128 in bfloat16, whose last mantissa bit is worth 1. So a code in the
// low bits is added to it exactly.
__device__ __forceinline__ void expand(const uint32_t (&words)[1], uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    pairs[i] = fma_bf16x2((words[0] >> 4 * i & 0x000F000Fu) | 0x43004300u, 0x3F803F80u, 0xC308C308u);  // times 1, minus 136
}
__device__ __forceinline__ void expand(const uint32_t (&words)[2], uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {  // the low seven bits, minus 128, and for negative codes minus 128 more: 0xC300 is -128,
                                 // 0xC380 is -256
    const uint32_t two = words[i / 2] >> 8 * (i % 2);
    pairs[i] = fma_bf16x2((two & 0x007F007Fu) | 0x43004300u, 0x3F803F80u, (two & 0x00800080u) | 0xC300C300u);
  }
}
// Eight consecutive activations in the same order.
template <int BITS>
__device__ __forceinline__ void pair_up(uint4 v, uint32_t (&pairs)[4]) {
  const uint32_t first = v.x, second = BITS == 4 ? v.z : v.y, third = BITS == 4 ? v.y : v.z, fourth = v.w;
  pairs[0] = __byte_perm(first, second, 0x5410);
  pairs[1] = __byte_perm(first, second, 0x7632);
  pairs[2] = __byte_perm(third, fourth, 0x5410);
  pairs[3] = __byte_perm(third, fourth, 0x7632);
}

// sum[i][j] += rows from 16 i on of A times columns from 8 j on of Bᵀ over one slice. x: this lane's rows l / 4 and l / 4 +
// 8, paired.
template <int BITS, int MT, int NT>
__device__ __forceinline__ void multiply_slice(float (&sum)[MT][NT][4], const uint32_t (&x)[MT][2][4],
                                               const uint32_t (&words)[NT][BITS / 4]) {
#pragma unroll
  for (int n = 0; n < NT; n++) {
    uint32_t y[4];
    expand(words[n], y);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 4; h += 2) {
        const uint32_t a[4] = {x[m][0][h], x[m][1][h], x[m][0][h + 1], x[m][1][h + 1]};
        mma_bf16(sum[m][n], a, y[h], y[h + 1]);
      }
  }
}

// This lane's words of one slice of a row of codes.
__device__ __forceinline__ void read_words(Shared<uint32_t> p, uint32_t (&words)[1]) { words[0] = p[0]; }
__device__ __forceinline__ void read_words(Shared<uint32_t> p, uint32_t (&words)[2]) {
  const uint2 both = shared_cast<uint2>(p)[0];
  words[0] = both.x, words[1] = both.y;
}

// ---- few rows: a block has 8 · NT columns; its 8 warps take chunks of k in turn, each with its own ring ----

template <int BITS_, int NT_, int STAGES_>
struct Few {
  static constexpr int BITS = BITS_, NT = NT_, STAGES = STAGES_, BN = 8 * NT, rows = 16, warps = 8, threads = 32 * warps;
  static constexpr int slices = 4, chunk = slices * slice;  // elements of k that a warp loads at once: 64 or 128 bytes per
                                                            // column
  static constexpr int slice_bytes = slice * BITS / 8, pieces = slices * slice_bytes / 16;
  // [slice][column][slice_bytes], so that lanes read neighbouring words. 32 bytes of padding put the writes of one column on
  // different banks.
  static constexpr int slice_stride = BN * slice_bytes + 32;
  static constexpr size_t stage = size_t(slices) * slice_stride, ring = warps * STAGES * stage;
  static size_t bytes(int64_t m, int unit) { return ring + sizeof(float) * size_t(warps * (chunk / unit) * BN * m); }
};

template <class S>
__global__ void __launch_bounds__(S::threads, 2) few_rows_kernel(Gemm g, Weight b, bool aligned) {
  const int lane = lane_id(), warp = warp_id(), m = int(g.m);
  const int per_unit = b.unit / slice, units = S::chunk / b.unit;  // units per chunk
  const int64_t n0 = int64_t(blockIdx.x) * S::BN, rounds = (g.k + S::warps * S::chunk - 1) / (S::warps * S::chunk);
  const auto* a = static_cast<const bf16*>(g.a);
  const auto ring = [&](int64_t round) {
    return dynamic_shared<uint32_t>((warp * S::STAGES + size_t(round % S::STAGES)) * S::stage, S::stage / 4);
  };
  const Shared<float> sums = dynamic_shared<float>(S::ring, size_t(S::warps * units * m) * S::BN);  // [unit][m][BN]

  const auto fetch = [&](int64_t round) {
    const int64_t k0 = (round * S::warps + warp) * S::chunk;
    const Shared<uint32_t> to = ring(round);
#pragma unroll
    for (int e = lane; e < S::BN * S::pieces; e += 32) {
      const int column = e / S::pieces, byte = e % S::pieces * 16;
      const bool inside = n0 + column < g.n && k0 + byte * 8 / S::BITS < g.k;
      const uint8_t* from = b.codes + ((n0 + column) * g.k + k0) * S::BITS / 8 + byte;
      copy_async<16>(to + (byte / S::slice_bytes * S::slice_stride + column * S::slice_bytes + byte % S::slice_bytes) / 4,
                     inside ? from : b.codes, inside ? 16 : 0);
    }
  };
  const auto activations = [&](int row, int64_t k) {
    bf16 v[8] = {};
    if (row < m && k < g.k) {
      const bf16* p = a + row * g.lda + k;
      if (aligned) return load<uint4>(p);
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = p[i];
    }
    const auto pair = [&](int i) { return uint32_t(v[i + 1].bits) << 16 | v[i].bits; };
    return uint4{pair(0), pair(2), pair(4), pair(6)};
  };

  for (int round = 0; round < S::STAGES - 1; round++) {
    if (round < rounds) fetch(round);
    copy_async_commit();
  }
  float total[S::rows * S::BN / S::threads] = {};  // elements threadIdx.x, threadIdx.x + 256, … of C
  for (int64_t round = 0; round < rounds; round++) {
    const int64_t k0 = (round * S::warps + warp) * S::chunk;
    uint32_t x[S::slices][1][2][4];
#pragma unroll
    for (int s = 0; s < S::slices; s++)
#pragma unroll
      for (int h = 0; h < 2; h++) pair_up<S::BITS>(activations(lane / 4 + 8 * h, k0 + s * slice + lane % 4 * 8), x[s][0][h]);
    copy_async_wait<S::STAGES - 2>();
    __syncwarp();  // this round's codes have arrived for the warp, and no lane still reads those of the last round
    if (round + S::STAGES - 1 < rounds) fetch(round + S::STAGES - 1);
    copy_async_commit();
    const Shared<uint32_t> codes = ring(round);
    float sum[1][S::NT][4] = {};
#pragma unroll
    for (int s = 0; s < S::slices; s++) {
      if (k0 + s * slice >= g.k) break;
      uint32_t words[S::NT][S::BITS / 4];
#pragma unroll
      for (int n = 0; n < S::NT; n++)
        read_words(codes + (s * S::slice_stride + n * 8 * S::slice_bytes) / 4 + lane * (S::BITS / 4), words[n]);
      multiply_slice<S::BITS>(sum, x[s], words);
      if ((s + 1) % per_unit != 0) continue;
#pragma unroll
      for (int n = 0; n < S::NT; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int row = lane / 4 + 8 * h, unit = warp * units + s / per_unit;
          if (row < m)
            shared_cast<float2>(sums + (unit * m + row) * S::BN + n * 8 + lane % 4 * 2)[0] =
                float2{sum[0][n][2 * h], sum[0][n][2 * h + 1]};
          sum[0][n][2 * h] = sum[0][n][2 * h + 1] = 0;
        }
    }
    __syncthreads();  // the sums of this round are complete
    const int first = int(round) * S::warps * units, count = min(S::warps * units, int(g.k / b.unit) - first);
#pragma unroll
    for (int i = 0; i < S::rows * S::BN / S::threads; i++) {
      const int e = int(threadIdx.x) + i * S::threads, row = e / S::BN, column = e % S::BN;
      if (row >= m || n0 + column >= g.n) continue;
#pragma unroll 8
      for (int u = 0; u < count; u++) {
        const float scale = b.scales[int64_t((first + u) / b.units_per_group) * g.n + n0 + column];
        total[i] = fmaf(scale, sums[(u * m + row) * S::BN + column], total[i]);
      }
    }
    __syncthreads();  // and have been read
  }
  copy_async_wait<0>();
#pragma unroll
  for (int i = 0; i < S::rows * S::BN / S::threads; i++) {
    const int e = int(threadIdx.x) + i * S::threads, row = e / S::BN;
    const int64_t column = n0 + e % S::BN;
    if (row >= m || column >= g.n) continue;
    if (g.real_out) static_cast<float*>(g.c)[row * g.ldc + column] = total[i];
    else static_cast<bf16*>(g.c)[row * g.ldc + column] = to_bf16(total[i]);
  }
}

// ---- many rows: blocks of 64 × 128; each of the 4 warps has all 64 rows and 32 columns, so every code is expanded once ----

template <int BITS_>
struct Many {
  static constexpr int BITS = BITS_, BM = 64, BN = 128, STAGES = 6, threads = 128, MT = BM / 16, NT = BN / 32;
  static constexpr int slice_bytes = slice * BITS / 8;
  using TileA = Tile<BM, slice>;
  static constexpr size_t bytes_a = TileA::count * sizeof(bf16), stage = bytes_a + size_t(BN) * slice_bytes,
                          bytes = STAGES * stage;
};

template <class S, bool ALIGNED>
__global__ void __launch_bounds__(S::threads) many_rows_kernel(Gemm g, Weight b, int64_t tiles_m, int64_t tiles_n) {
  using TileA = typename S::TileA;
  int64_t tile_m, tile_n;
  tile_of(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
  const int64_t m0 = tile_m * S::BM, n0 = tile_n * S::BN, steps = g.k / slice;
  const int lane = lane_id(), warp_n = warp_id() * S::NT * 8, per_unit = b.unit / slice;
  const auto* a = static_cast<const bf16*>(g.a);
  const auto tile_a = [&](int64_t t) { return dynamic_shared<bf16>(size_t(t % S::STAGES) * S::stage, TileA::count); };
  const auto tile_b = [&](int64_t t) {
    return dynamic_shared<uint32_t>(size_t(t % S::STAGES) * S::stage + S::bytes_a, S::BN * S::slice_bytes / 4);
  };
  const auto fetch = [&](int64_t t) {
    TileA::template fetch<ALIGNED, S::threads>(tile_a(t), a, g.lda, m0, g.m, t * slice, g.k);
    const Shared<uint32_t> to = tile_b(t);
#pragma unroll
    for (int e = int(threadIdx.x); e < S::BN * S::slice_bytes / 16; e += S::threads) {
      const int64_t column = n0 + e * 16 / S::slice_bytes;
      const uint8_t* from = b.codes + (column * g.k + t * slice) * S::BITS / 8 + e * 16 % S::slice_bytes;
      copy_async<16>(to + 4 * e, column < g.n ? from : b.codes, column < g.n ? 16 : 0);
    }
  };

  float sum[S::MT][S::NT][4] = {}, total[S::MT][S::NT][4] = {};
  for (int64_t t = 0; t < S::STAGES - 1; t++) {
    if (t < steps) fetch(t);
    copy_async_commit();
  }
  int left = per_unit, unit = 0;
  for (int64_t t = 0; t < steps; t++) {
    copy_async_wait<S::STAGES - 2>();
    __syncthreads();  // step t has arrived for all threads, and none still reads the stage of step t - 1
    if (t + S::STAGES - 1 < steps) fetch(t + S::STAGES - 1);
    copy_async_commit();
    const Shared<bf16> from_a = tile_a(t);
    const Shared<uint32_t> from_b = tile_b(t);
    uint32_t x[S::MT][2][4], words[S::NT][S::BITS / 4];
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint4 v = shared_cast<uint4>(from_a + TileA::at(m * 16 + h * 8, lane / 4, lane % 4 * 8))[0];
        pair_up<S::BITS>(v, x[m][h]);
      }
#pragma unroll
    for (int n = 0; n < S::NT; n++) read_words(from_b + (warp_n + n * 8) * S::slice_bytes / 4 + lane * (S::BITS / 4), words[n]);
    multiply_slice<S::BITS>(sum, x, words);
    if (--left > 0) continue;
    left = per_unit;
    const float* scales = b.scales + int64_t(unit++ / b.units_per_group) * g.n;
#pragma unroll
    for (int n = 0; n < S::NT; n++) {
      const int64_t column = n0 + warp_n + n * 8 + lane % 4 * 2;
      const float scale[2] = {column < g.n ? scales[column] : 0, column + 1 < g.n ? scales[column + 1] : 0};
#pragma unroll
      for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          total[m][n][e] = fmaf(scale[e % 2], sum[m][n][e], total[m][n][e]);
          sum[m][n][e] = 0;
        }
    }
  }
  copy_async_wait<0>();
#pragma unroll
  for (int m = 0; m < S::MT; m++)
#pragma unroll
    for (int n = 0; n < S::NT; n++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        store_pair(g, m0 + m * 16 + h * 8 + lane / 4, n0 + warp_n + n * 8 + lane % 4 * 2, total[m][n][2 * h],
                   total[m][n][2 * h + 1]);
}

// ---- float32: BM × 64 tiles, one slice of k at a time, BM / 4 rows of one column per thread ----

template <int BITS, int BM>
__global__ void __launch_bounds__(256) float_rows_kernel(Gemm g, Weight b, int64_t tiles_m, int64_t tiles_n) {
  constexpr int BN = 64, TM = BM / 4;
  SHARED_ARRAY(float, tile_a, BM* slice);
  SHARED_ARRAY(float, tile_b, slice*(BN + 1));  // [k][column], unscaled; padding by one puts a warp's stores on different
                                                // banks
  int64_t tile_m, tile_n;
  tile_of(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
  const int64_t m0 = tile_m * BM, n0 = tile_n * BN;
  const int t = int(threadIdx.x), tx = t % BN, ty = t / BN;
  const auto* a = static_cast<const float*>(g.a);
  const bool inside = n0 + tx < g.n;
  float total[TM] = {};
  for (int64_t k0 = 0; k0 < g.k; k0 += slice) {
#pragma unroll
    for (int e = t; e < BM * slice; e += 256) {
      const int64_t row = m0 + e / slice;
      tile_a[e] = row < g.m ? a[row * g.lda + k0 + e % slice] : 0.0f;
    }
    const int64_t column = n0 + t / 4;  // this thread expands eight codes of this column
    const uint8_t* from = b.codes + (column * g.k + k0 + t % 4 * 8) * BITS / 8;
    uint32_t words[BITS / 4] = {};
    if (column < g.n)
      for (int w = 0; w < BITS / 4; w++) words[w] = load<uint32_t>(from + 4 * w);
#pragma unroll
    for (int i = 0; i < 8; i++)
      tile_b[(t % 4 * 8 + i) * (BN + 1) + t / 4] =
          BITS == 4 ? float(int(words[0] >> 4 * i & 15) - 8) : float(int8_t(words[i / 4 % (BITS / 4)] >> 8 * (i % 4)));
    __syncthreads();
    float sum[TM] = {};
#pragma unroll 8
    for (int k = 0; k < slice; k++) {
      const float y = tile_b[k * (BN + 1) + tx];
#pragma unroll
      for (int i = 0; i < TM; i++) sum[i] = fmaf(tile_a[(i * 4 + ty) * slice + k], y, sum[i]);
    }
    const float scale = inside ? b.scales[k0 / (int64_t(b.unit) * b.units_per_group) * g.n + n0 + tx] : 0;
#pragma unroll
    for (int i = 0; i < TM; i++) total[i] = fmaf(scale, sum[i], total[i]);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < TM; i++) {
    const int64_t row = m0 + i * 4 + ty;
    if (inside && row < g.m) static_cast<float*>(g.c)[row * g.ldc + n0 + tx] = total[i];
  }
}

// ---- choice of the kernel ----

template <int BITS>
int float_product(Context& c, const Gemm& g, const Weight& b) {
  const auto go = [&](auto kernel, int rows) {
    const int64_t tiles_m = ceil_div(g.m, rows), tiles_n = ceil_div(g.n, 64);
    return check(c, launch(kernel, dim3(unsigned(tiles_m * tiles_n)), dim3(256), 0, c.stream, g, b, tiles_m, tiles_n),
                 "gemm_quantized");
  };
  return g.m <= 4 ? go(float_rows_kernel<BITS, 4>, 4) : go(float_rows_kernel<BITS, 32>, 32);
}

template <int BITS>
int tensor_product(Context& c, const Gemm& g, const Weight& b) {
  const bool aligned = reinterpret_cast<uintptr_t>(g.a) % 16 == 0 && g.lda % 8 == 0;
  const auto few = [&]<class S>(S) {
    return check(c,
                 launch(few_rows_kernel<S>, dim3(unsigned(ceil_div(g.n, S::BN))), dim3(S::threads), S::bytes(g.m, b.unit),
                        c.stream, g, b, aligned),
                 "gemm_quantized");
  };
  if (g.m <= 16) {
    // Every block reads all of A. Use wider blocks if there are still enough of them to fill the chip, and it has enough
    // shared memory.
    using Wide = Few<BITS, 4, BITS == 4 ? 4 : 2>;
    int processors = 0, limit = 0;
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, c.device);
    cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, c.device);
    if (g.m > 4 && ceil_div(g.n, Wide::BN) >= 2 * processors && Wide::bytes(g.m, b.unit) <= size_t(limit)) return few(Wide{});
    return few(Few < BITS, 2, BITS == 4 ? 4 : 3 > {});
  }
  const auto many = [&](auto kernel) {
    using S = Many<BITS>;
    const int64_t tiles_m = ceil_div(g.m, S::BM), tiles_n = ceil_div(g.n, S::BN);
    return check(c,
                 launch(kernel, dim3(unsigned(tiles_m * tiles_n)), dim3(S::threads), S::bytes, c.stream, g, b, tiles_m, tiles_n),
                 "gemm_quantized");
  };
  return aligned ? many(many_rows_kernel<Many<BITS>, true>) : many(many_rows_kernel<Many<BITS>, false>);
}

int gemm_quantized(void* ctx, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const LoopQuantized* q,
                   void* c_, int64_t ldc, int flags) {
  if (q->activation_bits) return fail(enter(ctx), "gemm_quantized: device cuda does not support 8-bit activations");
  if (q->asymmetric) return fail(enter(ctx), "gemm_quantized: device cuda supports only symmetric weights");
  const Gemm g{false, true, m, n, k, a, lda, nullptr, 0, c_, ldc, (flags & LOOP_GEMM_REAL_OUT) || dt == LOOP_F32, false};
  const int unit = std::gcd(q->group, 128);
  const Weight b{static_cast<const uint8_t*>(q->codes), q->scales, unit, q->group / unit};
  return with_dtype(ctx, "gemm_quantized", dt, [&]<class T>(Context& c, T) {
    if (m <= 0 || n <= 0) return 0;
    if constexpr (std::is_same_v<T, float>) return q->bits == 4 ? float_product<4>(c, g, b) : float_product<8>(c, g, b);
    else return q->bits == 4 ? tensor_product<4>(c, g, b) : tensor_product<8>(c, g, b);
  });
}

}  // namespace

void add_quantized(LoopBackend& table) { table.gemm_quantized = guarded<gemm_quantized>; }

}  // namespace looplm::cuda
