// Attention of one new token per row over a cache plane (math.md §7). The arithmetic is in decode_attention.h.
#include <algorithm>

#include "decode_attention.h"

namespace looplm::cuda {
namespace {

// Block (row, R heads that share a key head, z) handles the parts z, z + gridDim.y, … of its row.
template <class T, int W, int R, bool wide>
__global__ void __launch_bounds__(decode_threads, R < 4 ? 3 : 2)
    decode_kernel(const Decode<T> a, const LoopCacheContext* contexts) {
  const int head_blocks = a.heads / R, row = int(blockIdx.x) / head_blocks, head = int(blockIdx.x) % head_blocks * R;
  const Shared<float> sums = dynamic_shared<float>(0, size_t(decode_threads / a.lanes) * R * (a.head_dim + 2));
  const LoopCacheContext& context = contexts[row];
  const int count = parts_of(length_of(context)).count;
  Running running[decode_elements<W, R>];
  decode_parts<W, R, wide>(
      a, context, row, head, int(blockIdx.y), int(gridDim.y), int(threadIdx.x), sums, [] { __syncthreads(); },
      [&](int n, int r, int e, int part, float most, float total, float value) {
        const int64_t row_head = int64_t(row) * a.heads + head + r;
        if (a.partial) return keep_part(a, row_head, part, e, most, total, value);
        running[n].add(most, total, value);
        if (part == count - 1) a.out[row_head * a.head_dim + e] = from_float<T>(running[n].value / running[n].sum);
      });
}

// Combines the parts of a row in order; one block per row and head.
template <class T>
__global__ void __launch_bounds__(decode_threads) combine_kernel(const Decode<T> a, const LoopCacheContext* contexts) {
  const LoopCacheContext& context = contexts[int(blockIdx.x) / a.heads];
  const int parts = parts_of(length_of(context)).count;
  for (int e = int(threadIdx.x); e < a.head_dim; e += decode_threads)
    a.out[int64_t(blockIdx.x) * a.head_dim + e] = combined(a, blockIdx.x, parts, e);
}

template <class T, int W, int R, bool wide>
int run(Context& c, Decode<T> a, const LoopCacheContext* contexts, int64_t rows) {
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
                         launch(decode_kernel<T, W, R, wide>, dim3(unsigned(blocks), unsigned(parallel)), dim3(decode_threads),
                                shared, c.stream, a, contexts),
                         "decode_attention"))
    return status;
  if (parallel == 1) return 0;
  return check(c, launch(combine_kernel<T>, dim3(unsigned(rows * a.heads)), dim3(decode_threads), 0, c.stream, a, contexts),
               "decode_attention");
}

template <class T, int W, bool wide>
int by_ratio(Context& c, const Decode<T>& a, const LoopCacheContext* contexts, int64_t rows) {
  if (a.ratio % 4 == 0) return run<T, W, 4, wide>(c, a, contexts, rows);
  if (a.ratio % 2 == 0) return run<T, W, 2, wide>(c, a, contexts, rows);
  return run<T, W, 1, wide>(c, a, contexts, rows);
}

int decode_attention(void* ctx, LoopDType dt, const LoopDecodeAttention* d) {
  return with_dtype(ctx, "decode_attention", dt, [&]<class T>(Context& c, T) {
    if (d->head_dim > 512) return fail(c, "decode_attention: head sizes up to 512, not " + std::to_string(d->head_dim));
    const int width = d->head_dim > 256 ? 16 : 8;
    const Decode<T> a{d->heads,
                      d->kv_heads,
                      d->head_dim,
                      d->heads / d->kv_heads,
                      float(d->scale),
                      lanes_of(d->head_dim, width),
                      static_cast<const T*>(d->qkv),
                      static_cast<const T*>(d->keys),
                      static_cast<const T*>(d->values),
                      static_cast<T*>(d->out),
                      nullptr};
    if (width == 16) return run<T, 16, 1, false>(c, a, d->contexts, d->rows);
    bool aligned = d->head_dim % 8 == 0;
    for (const void* p : {d->qkv, d->keys, d->values}) aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
    return aligned ? by_ratio<T, 8, true>(c, a, d->contexts, d->rows) : by_ratio<T, 8, false>(c, a, d->contexts, d->rows);
  });
}

}  // namespace

void add_decode_attention(LoopBackend& table) { table.decode_attention = decode_attention; }

}  // namespace looplm::cuda
