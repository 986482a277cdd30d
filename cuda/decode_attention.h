// Attention of one new token over a cache plane (math.md §7), by a group of threads. A row's keys are split into parts, whose
// size depends only on the number of keys. So a row's arithmetic does not depend on the batch. One group or several may run
// the parts of a row; they are combined in order.
//
// Within a group, the keys of a part are distributed over teams of lanes in turn. A team holds a whole head, eight elements
// per lane, and processes its keys with a running softmax. At the end, the teams are combined in order.
#pragma once
#include "context.h"

namespace looplm::cuda {

constexpr int decode_threads = 128 /* per group */, part_keys = 64, most_parts = 64;

// Number of lanes that hold a head together, with `width` elements each.
inline int lanes_of(int head_dim, int width) {
  int lanes = 1;
  while (lanes * width < head_dim) lanes *= 2;
  return lanes;
}

template <class T>
struct Decode {
  int heads, kv_heads, head_dim, ratio;
  float scale;
  int lanes;                     // per team
  const T *qkv, *keys, *values;  // keys and values: the slots that hold rows in act
  T* out;
  float* partial;  // [rows, heads, most_parts, head_dim + 2]: Σ exp(s - m) v, then m and Σ exp(s - m). NULL if one group does
                   // all parts of a row
};

// Elements of the result per thread.
template <int W, int R>
constexpr int decode_elements = (R * W * 32 + decode_threads - 1) / decode_threads;

// One element of the result, accumulated over the parts.
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
  int count, keys;  // keys per part; the last part may have fewer
};
__device__ __forceinline__ Parts parts_of(int keys) {
  const int wanted = min((keys + part_keys - 1) / part_keys, most_parts);
  const int each = wanted > 0 ? (keys + wanted - 1) / wanted : 0;
  return {each > 0 ? (keys + each - 1) / each : 0, each};
}

// Reads W elements of a head from `from` on as float32; elements beyond the head are 0. wide: 16 bytes at a time.
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

// The cache slot of a row's key.
__device__ __forceinline__ int64_t slot_of(const LoopCacheContext& context, int key) {
#pragma unroll 1
  for (int r = 0; r + 1 < LOOP_CACHE_RUNS; ++r) {
    const LoopCacheRun run = context.runs[r];
    if (key < run.length) return run.begin + key;
    key -= run.length;
  }
  return context.runs[LOOP_CACHE_RUNS - 1].begin + key;
}
__device__ __forceinline__ int length_of(const LoopCacheContext& context) {
  int length = 0;
  for (const LoopCacheRun& run : context.runs) length += run.length;
  return length;
}

// The keys and values of a row, in the form that decode_parts reads. length(): how many there are. read(): W elements of a
// key and its value, from element `from` of the key head `kv_head`. If `inside` is false, it reads nothing and the elements
// are 0.
template <class T>
struct PlainKeys {
  const Decode<T>& a;
  const LoopCacheContext& context;
  __device__ __forceinline__ int length() const { return length_of(context); }
  template <bool wide, int W>
  __device__ __forceinline__ void read(float (&k)[W], float (&v)[W], int key, bool inside, int kv_head, int from) const {
    const int64_t at = inside ? (slot_of(context, key) * a.kv_heads + kv_head) * a.head_dim : 0;
    read_head<W, wide>(k, a.keys + at, from, inside ? a.head_dim : 0);
    read_head<W, wide>(v, a.values + at, from, inside ? a.head_dim : 0);
  }
};

// Prefetches the keys and values of a part into the L2 cache.
template <class T>
__device__ __forceinline__ void prefetch_part(const Decode<T>& a, const LoopCacheContext& context, const Parts& parts, int head,
                                              int part, int thread) {
  constexpr int line = 128 / int(sizeof(T));
  const int begin = part * parts.keys, end = min(begin + parts.keys, length_of(context));
  const int lines = (a.head_dim + line - 1) / line;
  for (int i = thread; i < (end - begin) * lines; i += decode_threads) {
    const int64_t at = (slot_of(context, begin + i / lines) * a.kv_heads + head / a.ratio) * a.head_dim + i % lines * line;
    prefetch(a.keys + at);
    prefetch(a.values + at);
  }
}

// Computes the parts first_part, first_part + part_step, … of `row`, for R heads that share a key head, with the
// decode_threads threads of a group.
// keys: has the interface of PlainKeys. thread: index in the group. meet(): barrier of the group. sums: R × (head_dim + 2)
// floats per team.
// put(n, r, e, part, largest, sum, value) receives element e of head + r, which is this thread's n-th element. largest and
// sum are the part's largest score and its Σ exp(s - largest).
template <int W, int R, bool wide, class T, class Keys, class Meet, class Put>
__device__ __forceinline__ void decode_parts(const Decode<T>& a, const Keys& keys, int row, int head, int first_part,
                                             int part_step, int thread, Shared<float> sums, Meet meet, Put put) {
  const int teams = decode_threads / a.lanes, team = thread / a.lanes, from = thread % a.lanes * W, stride = a.head_dim + 2;
  const int length = keys.length();
  const Parts parts = parts_of(length);
  const int64_t row_width = int64_t(a.heads + 2 * a.kv_heads) * a.head_dim;

  float q[R][W];
#pragma unroll
  for (int r = 0; r < R; ++r) read_head<W, wide>(q[r], a.qkv + row * row_width + (head + r) * a.head_dim, from, a.head_dim);

  for (int part = first_part; part < parts.count; part += part_step) {
    const int begin = part * parts.keys, end = min(begin + parts.keys, length);
    float out[R][W], largest[R], sum[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      largest[r] = -INFINITY;
      sum[r] = 0;
#pragma unroll
      for (int i = 0; i < W; ++i) out[r][i] = 0;
    }
    // Each team handles two keys at a time, so that their loads overlap. All lanes of a warp make the same number of
    // iterations.
    for (int first = begin; first < end; first += 2 * teams) {
      float k[2][W], v[2][W];
      bool inside[2];
#pragma unroll
      for (int two = 0; two < 2; ++two) {
        const int key = first + two * teams + team;
        inside[two] = key < end;
        keys.template read<wide>(k[two], v[two], key, inside[two], head / a.ratio, from);
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
          s = __fmul_rn(s, a.scale);  // rounded separately, because this value is also used as the part's largest score
          const float most = fmaxf(largest[r], s), shrink = expf(largest[r] - most), p = expf(s - most);
          largest[r] = most;
          sum[r] = fmaf(sum[r], shrink, p);
#pragma unroll
          for (int i = 0; i < W; ++i) out[r][i] = fmaf(p, v[two][i], out[r][i] * shrink);
        }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const Shared<float> to = sums + (team * R + r) * stride;
#pragma unroll
      for (int i = 0; i < W; ++i)
        if (from + i < a.head_dim) to[from + i] = out[r][i];
      if (from == 0) {
        to[a.head_dim] = largest[r];
        to[a.head_dim + 1] = sum[r];
      }
    }
    meet();
    // Combines the teams in order; a team without keys has the sum 0.
#pragma unroll
    for (int n = 0; n < decode_elements<W, R>; ++n) {
      const int i = n * decode_threads + thread, r = i / a.head_dim, e = i % a.head_dim;
      if (i >= R * a.head_dim) continue;
      float most = -INFINITY, total = 0, value = 0;
      for (int g = 0; g < teams; ++g) most = fmaxf(most, sums[(g * R + r) * stride + a.head_dim]);
      for (int g = 0; g < teams; ++g) {
        const Shared<float> at = sums + (g * R + r) * stride;
        const float weight = expf(at[a.head_dim] - most);
        total = fmaf(weight, at[a.head_dim + 1], total);
        value = fmaf(weight, at[e], value);
      }
      put(n, r, e, part, most, total, value);
    }
    meet();
  }
}

// Stores a part of one row and head to be combined later. row_head: row · heads + head.
template <class T>
__device__ __forceinline__ void keep_part(const Decode<T>& a, int64_t row_head, int part, int e, float most, float total,
                                          float value) {
  float* to = a.partial + (row_head * most_parts + part) * (a.head_dim + 2);
  to[e] = value;
  if (e == 0) {
    to[a.head_dim] = most;
    to[a.head_dim + 1] = total;
  }
}
template <class T>
__device__ __forceinline__ T combined(const Decode<T>& a, int64_t row_head, int parts, int e) {
  const int stride = a.head_dim + 2;
  const float* partial = a.partial + row_head * most_parts * stride;
  Running running;
  for (int part = 0; part < parts; ++part) {
    const float* at = partial + part * stride;
    running.add(at[a.head_dim], at[a.head_dim + 1], at[e]);
  }
  return from_float<T>(running.value / running.sum);
}

}  // namespace looplm::cuda
