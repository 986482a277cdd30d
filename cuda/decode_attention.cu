// Attention of one new token per row over a cache plane (math.md §7). A row's keys are cut into parts by their number alone, so a
// row's arithmetic does not depend on the batch; the parts of a row may run in one block or in many, and are put together in
// order.
//
// Within a block the keys of a part are dealt to groups of lanes in turn. A group holds the whole head, eight elements a lane,
// and goes through its keys with a running softmax; at the end the groups are put together in order.
#include <algorithm>

#include "context.h"

namespace looplm::cuda {
namespace {

constexpr int decode_threads = 128, part_keys = 64, most_parts = 64;

template <class T>
struct Decode {
  int heads, kv_heads, head_dim, ratio;
  float scale;
  int lanes;  // of a group
  const T *qkv, *keys, *values;
  const LoopCacheContext* contexts;
  T* out;
  float* partial;  // [rows, heads, most_parts, head_dim + 2]: Σ exp(s - m) v, then m and Σ exp(s - m). NULL with one block a row
};

// One element of the result, part by part.
struct Running {
  float largest = -INFINITY, sum = 0, value = 0;
  __device__ void add(float part_largest, float part_sum, float part_value) {
    const float most = fmaxf(largest, part_largest), old = expf(largest - most), fresh = expf(part_largest - most);
    largest = most;
    sum = fmaf(fresh, part_sum, sum * old);
    value = fmaf(fresh, part_value, value * old);
  }
};

struct Parts {
  int count, keys;  // keys of a part; the last may have fewer
};
__device__ __forceinline__ Parts parts_of(int keys) {
  const int wanted = min((keys + part_keys - 1) / part_keys, most_parts);
  const int each = wanted > 0 ? (keys + wanted - 1) / wanted : 0;
  return {each > 0 ? (keys + each - 1) / each : 0, each};
}

// W elements of a head from `from`, as float32; what lies behind the head is 0. `wide`: 16 bytes at a time.
template <int W, bool wide, class T>
__device__ __forceinline__ void read_head(float (&x)[W], const T* head, int from, int head_dim) {
  constexpr int each = 16 / int(sizeof(T));
  if constexpr (wide) {
#pragma unroll
    for (int i = 0; i < W; i += each) {
      const uint4 v = from + i < head_dim ? load<uint4>(head + from + i) : uint4{0, 0, 0, 0};
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if constexpr (sizeof(T) == 2) x[i + 2 * w] = bf16_low(words[w]), x[i + 2 * w + 1] = bf16_high(words[w]);
        else x[i + w] = __uint_as_float(words[w]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) x[i] = from + i < head_dim ? to_float(head[from + i]) : 0.0f;
  }
}

// Block (row, R of the heads that share a key head, z) does the parts z, z + gridDim.y, … of its row. Dynamic shared memory: for
// every group R × (head_dim + 2) floats.
template <class T, int W, int R, bool wide>
__global__ void __launch_bounds__(decode_threads, 3) decode_kernel(const Decode<T> a) {
  const int head_blocks = a.heads / R, row = int(blockIdx.x) / head_blocks, head = int(blockIdx.x) % head_blocks * R;
  const int groups = decode_threads / a.lanes, group = int(threadIdx.x) / a.lanes, from = int(threadIdx.x) % a.lanes * W;
  const int stride = a.head_dim + 2;
  const Shared<float> sums = dynamic_shared<float>(0, size_t(groups) * R * stride);
  const LoopCacheContext context = a.contexts[row];
  const int length = context.prefix_length + context.length;
  const Parts parts = parts_of(length);
  const int64_t kv_width = int64_t(a.kv_heads) * a.head_dim, row_width = int64_t(a.heads + 2 * a.kv_heads) * a.head_dim;
  const int kv_column = head / a.ratio * a.head_dim;

  float q[R][W];
#pragma unroll
  for (int r = 0; r < R; ++r) read_head<W, wide>(q[r], a.qkv + row * row_width + (head + r) * a.head_dim, from, a.head_dim);

  constexpr int elements = (R * W * 32 + decode_threads - 1) / decode_threads;  // of the result, for one thread
  Running running[elements];
  for (int part = int(blockIdx.y); part < parts.count; part += int(gridDim.y)) {
    const int begin = part * parts.keys, end = min(begin + parts.keys, length);
    float out[R][W], largest[R], sum[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      largest[r] = -INFINITY;
      sum[r] = 0;
#pragma unroll
      for (int i = 0; i < W; ++i) out[r][i] = 0;
    }
    // Two keys of a group at a time: their loads are under way together. All lanes of a warp make the same number of turns.
    for (int first = begin; first < end; first += 2 * groups) {
      float k[2][W], v[2][W];
      bool inside[2];
#pragma unroll
      for (int two = 0; two < 2; ++two) {
        const int key = first + two * groups + group;
        inside[two] = key < end;
        const int64_t slot =
            key < context.prefix_length ? context.prefix_begin + key : context.begin + key - context.prefix_length;
        const int64_t at = inside[two] ? slot * kv_width + kv_column : 0;
        read_head<W, wide>(k[two], a.keys + at, from, inside[two] ? a.head_dim : 0);
        read_head<W, wide>(v[two], a.values + at, from, inside[two] ? a.head_dim : 0);
      }
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int two = 0; two < 2; ++two) {
          float s = 0;
#pragma unroll
          for (int i = 0; i < W; ++i) s = fmaf(q[r][i], k[two][i], s);
          for (int distance = a.lanes / 2; distance > 0; distance /= 2) s += __shfl_xor_sync(full_warp, s, distance);
          if (!inside[two]) continue;
          s *= a.scale;
          const float most = fmaxf(largest[r], s), shrink = expf(largest[r] - most), p = expf(s - most);
          largest[r] = most;
          sum[r] = sum[r] * shrink + p;
#pragma unroll
          for (int i = 0; i < W; ++i) out[r][i] = fmaf(p, v[two][i], out[r][i] * shrink);
        }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const Shared<float> to = sums + (group * R + r) * stride;
#pragma unroll
      for (int i = 0; i < W; ++i)
        if (from + i < a.head_dim) to[from + i] = out[r][i];
      if (from == 0) {
        to[a.head_dim] = largest[r];
        to[a.head_dim + 1] = sum[r];
      }
    }
    __syncthreads();
    // The groups in order; one without keys has the sum 0.
#pragma unroll
    for (int n = 0; n < elements; ++n) {
      const int i = n * decode_threads + int(threadIdx.x), r = i / a.head_dim, e = i % a.head_dim;
      if (i >= R * a.head_dim) continue;
      float most = -INFINITY, total = 0, value = 0;
      for (int g = 0; g < groups; ++g) most = fmaxf(most, sums[(g * R + r) * stride + a.head_dim]);
      for (int g = 0; g < groups; ++g) {
        const Shared<float> at = sums + (g * R + r) * stride;
        const float weight = expf(at[a.head_dim] - most);
        total = fmaf(weight, at[a.head_dim + 1], total);
        value = fmaf(weight, at[e], value);
      }
      const int64_t row_head = int64_t(row) * a.heads + head + r;
      if (!a.partial) {
        running[n].add(most, total, value);
        if (part == parts.count - 1) a.out[row_head * a.head_dim + e] = from_float<T>(running[n].value / running[n].sum);
      } else {
        float* to = a.partial + (row_head * most_parts + part) * stride;
        to[e] = value;
        if (e == 0) {
          to[a.head_dim] = most;
          to[a.head_dim + 1] = total;
        }
      }
    }
    __syncthreads();
  }
}

// The parts of a row in order, a block per row and head.
template <class T>
__global__ void __launch_bounds__(decode_threads) combine_kernel(const Decode<T> a) {
  const int row = int(blockIdx.x) / a.heads, stride = a.head_dim + 2;
  const LoopCacheContext context = a.contexts[row];
  const int parts = parts_of(context.prefix_length + context.length).count;
  const float* partial = a.partial + int64_t(blockIdx.x) * most_parts * stride;
  for (int e = int(threadIdx.x); e < a.head_dim; e += decode_threads) {
    Running running;
    for (int part = 0; part < parts; ++part) {
      const float* at = partial + part * stride;
      running.add(at[a.head_dim], at[a.head_dim + 1], at[e]);
    }
    a.out[int64_t(blockIdx.x) * a.head_dim + e] = from_float<T>(running.value / running.sum);
  }
}

template <class T, int W, int R, bool wide>
int run(Context& c, Decode<T> a, int64_t rows) {
  const int64_t blocks = rows * (a.heads / R);
  if (blocks == 0) return 0;
  // With few rows, a block for each part; with many, a block goes through all parts of its row.
  const int64_t parallel = std::clamp<int64_t>(4096 / blocks, 1, most_parts);
  if (parallel > 1) {
    a.partial = static_cast<float*>(scratch(c, size_t(rows) * size_t(a.heads) * most_parts * size_t(a.head_dim + 2) * 4));
    if (!a.partial) return 1;
  }
  const size_t shared = size_t(decode_threads / a.lanes) * R * size_t(a.head_dim + 2) * 4;
  if (int status = check(c,
                         launch(decode_kernel<T, W, R, wide>, dim3(unsigned(blocks), unsigned(parallel)), dim3(decode_threads),
                                shared, c.stream, a),
                         "decode_attention"))
    return status;
  if (parallel == 1) return 0;
  return check(c, launch(combine_kernel<T>, dim3(unsigned(rows * a.heads)), dim3(decode_threads), 0, c.stream, a),
               "decode_attention");
}

template <class T, int W, bool wide>
int by_ratio(Context& c, const Decode<T>& a, int64_t rows) {
  if (a.ratio % 4 == 0) return run<T, W, 4, wide>(c, a, rows);
  if (a.ratio % 2 == 0) return run<T, W, 2, wide>(c, a, rows);
  return run<T, W, 1, wide>(c, a, rows);
}

int decode_attention(void* ctx, LoopDType dt, const LoopDecodeAttention* d) {
  return with_dtype(ctx, "decode_attention", dt, [&]<class T>(Context& c, T) {
    if (d->head_dim > 512) return fail(c, "decode_attention: head sizes up to 512, not " + std::to_string(d->head_dim));
    const int width = d->head_dim > 256 ? 16 : 8;
    int lanes = 1;
    while (lanes * width < d->head_dim) lanes *= 2;
    const Decode<T> a{d->heads,
                      d->kv_heads,
                      d->head_dim,
                      d->heads / d->kv_heads,
                      float(d->scale),
                      lanes,
                      static_cast<const T*>(d->qkv),
                      static_cast<const T*>(d->keys),
                      static_cast<const T*>(d->values),
                      d->contexts,
                      static_cast<T*>(d->out),
                      nullptr};
    if (width == 16) return run<T, 16, 1, false>(c, a, d->rows);
    bool aligned = d->head_dim % 8 == 0;
    for (const void* p : {d->qkv, d->keys, d->values}) aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
    return aligned ? by_ratio<T, 8, true>(c, a, d->rows) : by_ratio<T, 8, false>(c, a, d->rows);
  });
}

}  // namespace

void add_decode_attention(LoopBackend& table) { table.decode_attention = decode_attention; }

}  // namespace looplm::cuda
