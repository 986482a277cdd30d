// Attention of one new token per row over a cache plane (math.md §7), of rows in act or of records (backend.h,
// LoopCacheCodes). The arithmetic is in decode_attention.h.
#include <algorithm>
#include <type_traits>

#include "coded_cache.h"
#include "decode_attention.h"

namespace looplm::cuda {
namespace {

// An unquantized KV cache. keys_of(a, row) returns the keys and values of a row in the form that decode_parts reads.
struct PlainCache {
  const LoopCacheContext* contexts;
  template <class T>
  __device__ __forceinline__ PlainKeys<T> keys_of(const Decode<T>& a, int row) const {
    return {a, contexts[row]};
  }
};

// A quantized KV cache. A row first reads the records of its earlier tokens, with residuals the sum of two records per token.
// Then it reads its recent keys and values, which are those of Decode.
struct CodedCache {
  Records of_keys, of_values, residuals;
  const uint32_t *keys, *values, *residual_keys, *residual_values;
  const LoopCacheContext *contexts, *recent;
  const int32_t* residual_at;  // [rows]; NULL: no residuals

  template <class T>
  struct Keys {
    const Decode<T>& a;
    const CodedCache& cache;
    int row;
    __device__ __forceinline__ int length() const { return length_of(cache.contexts[row]) + length_of(cache.recent[row]); }
    template <bool wide, int W>
    __device__ __forceinline__ void read(float (&k)[W], float (&v)[W], int key, bool inside, int kv_head, int from) const {
      const int coded = length_of(cache.contexts[row]);
      if (!inside || key >= coded)
        return PlainKeys<T>{a, cache.recent[row]}.template read<wide>(k, v, key - coded, inside, kv_head, from);
      const int64_t slot = slot_of(cache.contexts[row], key);
      const int first = kv_head * a.head_dim + from, count = min(W, a.head_dim - from);
      take(cache.of_keys, cache.keys + slot * cache.of_keys.size, first, count, k);
      take(cache.of_values, cache.values + slot * cache.of_values.size, first, count, v);
      if (!cache.residual_at || cache.residual_at[row] < 0) return;
      const int64_t at = (cache.residual_at[row] + slot) * cache.residuals.size;
      add(cache.residuals, cache.residual_keys + at, first, count, k);
      add(cache.residuals, cache.residual_values + at, first, count, v);
    }
    template <int W>
    static __device__ __forceinline__ void take(const Records& r, const uint32_t* record, int first, int count, float (&x)[W]) {
#pragma unroll
      for (int e = 0; e < W; ++e) x[e] = 0;
      add(r, record, first, count, x);
    }
    template <int W>
    static __device__ __forceinline__ void add(const Records& r, const uint32_t* record, int first, int count, float (&x)[W]) {
      r.numbers<W>(record, first, count, [&](int e, float y) { x[e] += y; });
    }
  };
  template <class T>
  __device__ __forceinline__ Keys<T> keys_of(const Decode<T>& a, int row) const {
    return {a, *this, row};
  }
};

// Groups per multiprocessor that can run at once, given the registers that they need.
template <class Cache, int R>
constexpr int resident_groups = R < 4 && std::is_same_v<Cache, PlainCache> ? 3 : 2;

// Block (row, R heads that share a key head, z) handles the parts z, z + gridDim.y, … of its row.
template <class T, int W, int R, bool wide, class Cache>
__global__ void __launch_bounds__(decode_threads, resident_groups<Cache, R>) decode_kernel(const Decode<T> a, const Cache cache) {
  const int head_blocks = a.heads / R, row = int(blockIdx.x) / head_blocks, head = int(blockIdx.x) % head_blocks * R;
  const Shared<float> sums = dynamic_shared<float>(0, size_t(decode_threads / a.lanes) * R * (a.head_dim + 2));
  const auto keys = cache.keys_of(a, row);
  const int count = parts_of(keys.length()).count;
  Running running[decode_elements<W, R>];
  decode_parts<W, R, wide>(
      a, keys, row, head, int(blockIdx.y), int(gridDim.y), int(threadIdx.x), sums, [] { __syncthreads(); },
      [&](int n, int r, int e, int part, float most, float total, float value) {
        const int64_t row_head = int64_t(row) * a.heads + head + r;
        if (a.partial) return keep_part(a, row_head, part, e, most, total, value);
        running[n].add(most, total, value);
        if (part == count - 1) a.out[row_head * a.head_dim + e] = from_float<T>(running[n].value / running[n].sum);
      });
}

// Combines the parts of a row in order; one block per row and head.
template <class T, class Cache>
__global__ void __launch_bounds__(decode_threads) combine_kernel(const Decode<T> a, const Cache cache) {
  const int parts = parts_of(cache.keys_of(a, int(blockIdx.x) / a.heads).length()).count;
  for (int e = int(threadIdx.x); e < a.head_dim; e += decode_threads)
    a.out[int64_t(blockIdx.x) * a.head_dim + e] = combined(a, blockIdx.x, parts, e);
}

template <class T, int W, int R, bool wide, class Cache>
int run(Context& c, const char* operation, Decode<T> a, const Cache& cache, int64_t rows) {
  const int64_t blocks = rows * (a.heads / R);
  if (blocks == 0) return 0;
  // With few rows, one block per part. With many rows, one block handles all parts of its row.
  const int64_t parallel = std::clamp<int64_t>(4096 / blocks, 1, most_parts);
  if (parallel > 1) {
    a.partial = static_cast<float*>(scratch(c, size_t(rows) * size_t(a.heads) * most_parts * size_t(a.head_dim + 2) * 4));
    if (!a.partial) return LOOP_OUT_OF_MEMORY;
  }
  const size_t shared = size_t(decode_threads / a.lanes) * R * size_t(a.head_dim + 2) * 4;
  if (int status = check(c,
                         launch(decode_kernel<T, W, R, wide, Cache>, dim3(unsigned(blocks), unsigned(parallel)),
                                dim3(decode_threads), shared, c.stream, a, cache),
                         operation))
    return status;
  if (parallel == 1) return 0;
  return check(c, launch(combine_kernel<T, Cache>, dim3(unsigned(rows * a.heads)), dim3(decode_threads), 0, c.stream, a, cache),
               operation);
}

// keys, values: the slots that hold rows in act; of a quantized cache, the recent slots.
template <class Cache>
int attend(void* ctx, const char* operation, LoopDType dt, const LoopDecodeAttention& d, const void* keys, const void* values,
           const Cache& cache) {
  return with_dtype(ctx, operation, dt, [&]<class T>(Context& c, T) {
    if (d.head_dim > 512) return fail(c, operation + (": head sizes up to 512, not " + std::to_string(d.head_dim)));
    const int width = d.head_dim > 256 ? 16 : 8, ratio = d.heads / d.kv_heads;
    const Decode<T> a{d.heads,
                      d.kv_heads,
                      d.head_dim,
                      ratio,
                      float(d.scale),
                      lanes_of(d.head_dim, width),
                      static_cast<const T*>(d.qkv),
                      static_cast<const T*>(keys),
                      static_cast<const T*>(values),
                      static_cast<T*>(d.out),
                      nullptr};
    if (width == 16) return run<T, 16, 1, false>(c, operation, a, cache, d.rows);
    bool aligned = d.head_dim % 8 == 0;
    for (const void* p : {d.qkv, keys, values}) aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
    const auto by_ratio = [&]<bool wide>() {
      if (ratio % 4 == 0) return run<T, 8, 4, wide>(c, operation, a, cache, d.rows);
      if (ratio % 2 == 0) return run<T, 8, 2, wide>(c, operation, a, cache, d.rows);
      return run<T, 8, 1, wide>(c, operation, a, cache, d.rows);
    };
    return aligned ? by_ratio.template operator()<true>() : by_ratio.template operator()<false>();
  });
}

int decode_attention(void* ctx, LoopDType dt, const LoopDecodeAttention* d) {
  return attend(ctx, "decode_attention", dt, *d, d->keys, d->values, PlainCache{d->contexts});
}

int coded_attention(void* ctx, LoopDType dt, const LoopCodedAttention* c) {
  const LoopDecodeAttention& d = c->rows;
  const int64_t width = int64_t(d.kv_heads) * d.head_dim;
  const bool with_residuals = c->residual.bits > 0;
  const auto words = [](const void* p) { return static_cast<const uint32_t*>(p); };
  const CodedCache cache{Records(c->codes, width),
                         Records(loop_whole_codes(c->codes), width),
                         Records(with_residuals ? c->residual : c->codes, width),
                         words(d.keys),
                         words(d.values),
                         words(c->residual_keys),
                         words(c->residual_values),
                         d.contexts,
                         c->recent,
                         with_residuals ? c->residual_at : nullptr};
  return attend(ctx, "coded_attention", dt, d, c->recent_keys, c->recent_values, cache);
}

}  // namespace

void add_decode_attention(LoopBackend& table) {
  table.decode_attention = guarded<decode_attention>;
  table.coded_attention = guarded<coded_attention>;
}

}  // namespace looplm::cuda
