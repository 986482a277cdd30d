// Attention in float32 for any head size up to 512, with the same tiles as the tensor-core kernels. A block has 128 threads,
// as 8 × 16. A thread has `a` rows, and the columns t, t + 16, … of every tile. So the 16 threads of a row are half a warp.
#include "attention.h"

namespace looplm::cuda {
namespace {

constexpr int plain_threads = 128;

// D: number of columns, at least the head size; a: rows per thread; tiles have 8 · a rows and columns.
template <int D, int a>
struct Tile {
  static constexpr int rows = 8 * a, across = rows / 16, columns = D / 16, pitch = D + 4, weights_pitch = rows + 4;
  static constexpr size_t floats = size_t(rows) * pitch, weight_floats = size_t(rows) * weights_pitch;
  static constexpr size_t tiles_bytes = floats * 4, weights_bytes = weight_floats * 4;
};

__device__ __forceinline__ int row_group() { return int(threadIdx.x) / 16; }
__device__ __forceinline__ int column_group() { return int(threadIdx.x) % 16; }

// Loads rows [first, first + rows) of a run of keys. Rows from `end` on and columns beyond the head become 0.
template <class L, class T, int D>
__device__ __forceinline__ void load_tile(Shared<float> tile, const T* base, int64_t row_width, int head_dim, const KeyRun& run,
                                          int first, int end) {
  for (int row = warp_id(); row < L::rows; row += plain_threads / 32) {
    const int key = first + row;
    const T* from = base + (key < end ? run.token(key) * row_width : 0);
    for (int column = lane_id(); column < D; column += 32)
      tile[row * L::pitch + column] = key < end && column < head_dim ? to_float(from[column]) : 0.0f;
  }
}

// s[i][j] = Σ over columns of A[row a·group + i] · B[row column_group + 16 j].
template <class L, int a>
__device__ __forceinline__ void scores(float (&s)[a][L::across], Shared<float> a_tile, Shared<float> b_tile, int head_dim) {
#pragma unroll
  for (int i = 0; i < a; ++i)
#pragma unroll
    for (int j = 0; j < L::across; ++j) s[i][j] = 0;
  for (int column = 0; column < head_dim; column += 4) {
    float4 x[a], y[L::across];
#pragma unroll
    for (int i = 0; i < a; ++i) x[i] = shared_cast<float4>(a_tile + (a * row_group() + i) * L::pitch + column)[0];
#pragma unroll
    for (int j = 0; j < L::across; ++j) y[j] = shared_cast<float4>(b_tile + (column_group() + 16 * j) * L::pitch + column)[0];
#pragma unroll
    for (int i = 0; i < a; ++i)
#pragma unroll
      for (int j = 0; j < L::across; ++j)
        s[i][j] = fmaf(x[i].w, y[j].w, fmaf(x[i].z, y[j].z, fmaf(x[i].y, y[j].y, fmaf(x[i].x, y[j].x, s[i][j]))));
  }
}

// sums[i][c] += Σ over the tile's rows r of weights[i][r] · B[r][column_group + 16 c]. Only the 16 threads of a row have its
// weights, so they pass them to each other through this half warp's part of `exchange`.
template <class L, int a>
__device__ __forceinline__ void accumulate(float (&sums)[a][L::columns], const float (&weights)[a][L::across],
                                           Shared<float> exchange, Shared<float> b_tile) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < a; ++i)
#pragma unroll
    for (int j = 0; j < L::across; ++j)
      exchange[(a * row_group() + i) * L::weights_pitch + column_group() + 16 * j] = weights[i][j];
  __syncwarp();
  for (int r = 0; r < L::rows; r += 4) {
    float4 w[a];
#pragma unroll
    for (int i = 0; i < a; ++i) w[i] = shared_cast<float4>(exchange + (a * row_group() + i) * L::weights_pitch + r)[0];
#pragma unroll
    for (int c = 0; c < L::columns; ++c) {
      const Shared<float> at = b_tile + r * L::pitch + column_group() + 16 * c;
      const float b0 = at[0], b1 = at[L::pitch], b2 = at[2 * L::pitch], b3 = at[3 * L::pitch];
#pragma unroll
      for (int i = 0; i < a; ++i) sums[i][c] = fmaf(w[i].w, b3, fmaf(w[i].z, b2, fmaf(w[i].y, b1, fmaf(w[i].x, b0, sums[i][c]))));
    }
  }
}

template <class T, int D, int a>
__global__ void __launch_bounds__(plain_threads, 1) plain_forward_kernel(const Attention<T> arg, int slots) {
  using L = Tile<D, a>;
  const Shared<float> q_tile = dynamic_shared<float>(0, L::floats), k_tile = dynamic_shared<float>(L::tiles_bytes, L::floats),
                      v_tile = dynamic_shared<float>(2 * L::tiles_bytes, L::floats),
                      exchange = dynamic_shared<float>(3 * L::tiles_bytes, L::weight_floats);
  const int head = int(blockIdx.x) % arg.heads, slot = slots - 1 - int(blockIdx.x) / arg.heads, kv_head = head / arg.ratio;
  const int index = segment_of_slot(arg.segments, arg.segment_count, L::rows, slot);
  const KeyRun run = key_run(arg.segments[index]), own{run.begin, run.length, 0, 0};
  const int first = first_of_slot(slot, index, run.begin, L::rows);
  if (first >= run.length) return;
  const int two_way = arg.segments[index].two_way, visible = run.visible(first, L::rows, two_way);
  load_tile<L, T, D>(q_tile, arg.qkv + arg.q_column(head), arg.width, arg.head_dim, own, first, run.length);

  float out[a][L::columns] = {}, largest[a], sum[a] = {}, s[a][L::across];
#pragma unroll
  for (int i = 0; i < a; ++i) largest[i] = -INFINITY;
  for (int at = 0; at < visible; at += L::rows) {
    __syncthreads();
    load_tile<L, T, D>(k_tile, arg.qkv + arg.k_column(kv_head), arg.width, arg.head_dim, run, at, visible);
    load_tile<L, T, D>(v_tile, arg.qkv + arg.v_column(kv_head), arg.width, arg.head_dim, run, at, visible);
    __syncthreads();
    scores<L, a>(s, q_tile, k_tile, arg.head_dim);
#pragma unroll
    for (int i = 0; i < a; ++i) {
      const int last = run.prefix + max(first + a * row_group() + i, two_way - 1);
      float most = largest[i], here = 0;
#pragma unroll
      for (int j = 0; j < L::across; ++j) {
        s[i][j] = at + column_group() + 16 * j <= last ? __fmul_rn(s[i][j], arg.scale) : -INFINITY;
        most = fmaxf(most, s[i][j]);
      }
      most = warp_max<16>(most);
      const float shrink = expf(largest[i] - most);
      largest[i] = most;
#pragma unroll
      for (int j = 0; j < L::across; ++j) here += s[i][j] = expf(s[i][j] - most);
      sum[i] = fmaf(sum[i], shrink, here);
#pragma unroll
      for (int c = 0; c < L::columns; ++c) out[i][c] *= shrink;
    }
    accumulate<L, a>(out, s, exchange, v_tile);
  }
#pragma unroll
  for (int i = 0; i < a; ++i) {
    const float total = warp_sum<16>(sum[i]);
    const int query = first + a * row_group() + i;
    if (query >= run.length) continue;
    if (column_group() == 0) arg.lse[int64_t(head) * arg.tokens + run.begin + query] = largest[i] + logf(total);
    T* to = arg.out + (run.begin + query) * arg.out_width + arg.q_column(head);
#pragma unroll
    for (int c = 0; c < L::columns; ++c)
      if (column_group() + 16 * c < arg.head_dim) to[column_group() + 16 * c] = from_float<T>(out[i][c] / total);
  }
}

// ∂k and ∂v of a tile of keys, from all queries that see them, in the order of attention_backward.cu.
template <class T, int D, int a>
__global__ void __launch_bounds__(plain_threads, 1) plain_keys_backward_kernel(const Attention<T> arg) {
  using L = Tile<D, a>;
  const Shared<float> k_tile = dynamic_shared<float>(0, L::floats), v_tile = dynamic_shared<float>(L::tiles_bytes, L::floats),
                      q_tile = dynamic_shared<float>(2 * L::tiles_bytes, L::floats),
                      dout_tile = dynamic_shared<float>(3 * L::tiles_bytes, L::floats),
                      exchange = dynamic_shared<float>(4 * L::tiles_bytes, L::weight_floats);
  const int kv_head = int(blockIdx.x) % arg.kv_heads, slot = int(blockIdx.x) / arg.kv_heads;
  const int own_index = segment_of_slot(arg.segments, arg.segment_count, L::rows, slot);
  const LoopSegment own_segment = arg.segments[own_index];
  const KeyRun own{own_segment.begin, own_segment.end - own_segment.begin, 0, 0};
  const int first_key = first_of_slot(slot, own_index, own.begin, L::rows);
  if (first_key >= own.length) return;
  load_tile<L, T, D>(k_tile, arg.qkv + arg.k_column(kv_head), arg.width, arg.head_dim, own, first_key, own.length);
  load_tile<L, T, D>(v_tile, arg.qkv + arg.v_column(kv_head), arg.width, arg.head_dim, own, first_key, own.length);

  float dk[a][L::columns] = {}, dv[a][L::columns] = {}, s[a][L::across], ds[a][L::across];
  for (int index = own_index; index < arg.segment_count; ++index) {
    const LoopSegment segment = arg.segments[index];
    if (index > own_index && (segment.prefix_begin != own.begin || segment.prefix_end == segment.prefix_begin)) break;
    const KeyRun run{segment.begin, segment.end - segment.begin, 0, 0};
    for (int head = kv_head * arg.ratio; head < (kv_head + 1) * arg.ratio; ++head)
      for (int first = index == own_index && first_key >= own_segment.two_way ? first_key : 0; first < run.length;
           first += L::rows) {
        __syncthreads();
        load_tile<L, T, D>(q_tile, arg.qkv + arg.q_column(head), arg.width, arg.head_dim, run, first, run.length);
        load_tile<L, T, D>(dout_tile, arg.dout + arg.q_column(head), arg.out_width, arg.head_dim, run, first, run.length);
        __syncthreads();
        scores<L, a>(s, k_tile, q_tile, arg.head_dim);
        scores<L, a>(ds, v_tile, dout_tile, arg.head_dim);
#pragma unroll
        for (int j = 0; j < L::across; ++j) {
          const int query = first + column_group() + 16 * j;
          const int64_t at = int64_t(head) * arg.tokens + run.begin + query;
          const float lse = query < run.length ? arg.lse[at] : 0, delta = query < run.length ? arg.delta[at] : 0;
#pragma unroll
          for (int i = 0; i < a; ++i) {
            const bool seen = query < run.length &&
                              (index > own_index || first_key + a * row_group() + i <= max(query, own_segment.two_way - 1));
            s[i][j] = seen ? expf(s[i][j] * arg.scale - lse) : 0;
            ds[i][j] = s[i][j] * (ds[i][j] - delta);
          }
        }
        accumulate<L, a>(dv, s, exchange, dout_tile);
        accumulate<L, a>(dk, ds, exchange, q_tile);
      }
  }
#pragma unroll
  for (int i = 0; i < a; ++i) {
    const int key = first_key + a * row_group() + i;
    if (key >= own.length) continue;
    T* row = arg.dqkv + (own.begin + key) * arg.width;
#pragma unroll
    for (int c = 0; c < L::columns; ++c) {
      const int column = column_group() + 16 * c;
      if (column >= arg.head_dim) continue;
      row[arg.k_column(kv_head) + column] = from_float<T>(dk[i][c] * arg.scale);
      row[arg.v_column(kv_head) + column] = from_float<T>(dv[i][c]);
    }
  }
}

template <class T, int D, int a>
__global__ void __launch_bounds__(plain_threads, 1) plain_queries_backward_kernel(const Attention<T> arg, int slots) {
  using L = Tile<D, a>;
  const Shared<float> q_tile = dynamic_shared<float>(0, L::floats), dout_tile = dynamic_shared<float>(L::tiles_bytes, L::floats),
                      k_tile = dynamic_shared<float>(2 * L::tiles_bytes, L::floats),
                      v_tile = dynamic_shared<float>(3 * L::tiles_bytes, L::floats),
                      exchange = dynamic_shared<float>(4 * L::tiles_bytes, L::weight_floats);
  const int head = int(blockIdx.x) % arg.heads, slot = slots - 1 - int(blockIdx.x) / arg.heads, kv_head = head / arg.ratio;
  const int index = segment_of_slot(arg.segments, arg.segment_count, L::rows, slot);
  const KeyRun run = key_run(arg.segments[index]), own{run.begin, run.length, 0, 0};
  const int first = first_of_slot(slot, index, run.begin, L::rows);
  if (first >= run.length) return;
  const int two_way = arg.segments[index].two_way, visible = run.visible(first, L::rows, two_way);
  load_tile<L, T, D>(q_tile, arg.qkv + arg.q_column(head), arg.width, arg.head_dim, own, first, run.length);
  load_tile<L, T, D>(dout_tile, arg.dout + arg.q_column(head), arg.out_width, arg.head_dim, own, first, run.length);

  float dq[a][L::columns] = {}, s[a][L::across], ds[a][L::across];
  for (int at = 0; at < visible; at += L::rows) {
    __syncthreads();
    load_tile<L, T, D>(k_tile, arg.qkv + arg.k_column(kv_head), arg.width, arg.head_dim, run, at, visible);
    load_tile<L, T, D>(v_tile, arg.qkv + arg.v_column(kv_head), arg.width, arg.head_dim, run, at, visible);
    __syncthreads();
    scores<L, a>(s, q_tile, k_tile, arg.head_dim);
    scores<L, a>(ds, dout_tile, v_tile, arg.head_dim);
#pragma unroll
    for (int i = 0; i < a; ++i) {
      const int query = first + a * row_group() + i, last = query < run.length ? run.prefix + max(query, two_way - 1) : -1;
      const int64_t statistics = int64_t(head) * arg.tokens + run.begin + query;
      const float lse = last >= 0 ? arg.lse[statistics] : 0, delta = last >= 0 ? arg.delta[statistics] : 0;
#pragma unroll
      for (int j = 0; j < L::across; ++j)
        ds[i][j] = at + column_group() + 16 * j <= last ? expf(s[i][j] * arg.scale - lse) * (ds[i][j] - delta) : 0;
    }
    accumulate<L, a>(dq, ds, exchange, k_tile);
  }
#pragma unroll
  for (int i = 0; i < a; ++i) {
    const int query = first + a * row_group() + i;
    if (query >= run.length) continue;
    T* to = arg.dqkv + (run.begin + query) * arg.width + arg.q_column(head);
#pragma unroll
    for (int c = 0; c < L::columns; ++c)
      if (column_group() + 16 * c < arg.head_dim) to[column_group() + 16 * c] = from_float<T>(dq[i][c] * arg.scale);
  }
}

template <class T, int D, int a>
int forward(Context& c, const Attention<T>& arg) {
  using L = Tile<D, a>;
  const int64_t slots = tile_slots(arg.tokens, arg.segment_count, L::rows);
  return check(c,
               launch(plain_forward_kernel<T, D, a>, dim3(unsigned(slots * arg.heads)), dim3(plain_threads),
                      3 * L::tiles_bytes + L::weights_bytes, c.stream, arg, int(slots)),
               "attention");
}

// The backward pass of head sizes above 256 needs more shared memory than some chips allow per block (99 KiB on 8.6, 8.9 and
// 12.0).
int shared_memory_for(Context& c, size_t bytes, int head_dim) {
  int limit = 0, major = 0, minor = 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, c.device);
  if (bytes <= size_t(limit)) return 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c.device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, c.device);
  fail(c, "attention_backward: head size " + std::to_string(head_dim) + " needs " + std::to_string((bytes + 1023) / 1024) +
              " KiB of shared memory for a block, and this chip (compute capability " + std::to_string(major) + "." +
              std::to_string(minor) + ") has " + std::to_string(limit / 1024) + ": head sizes up to 256 can be trained here");
  return LOOP_UNSUPPORTED;
}

template <class T, int D, int a>
int backward(Context& c, const Attention<T>& arg) {
  using L = Tile<D, a>;
  const int64_t slots = tile_slots(arg.tokens, arg.segment_count, L::rows);
  constexpr size_t bytes = 4 * L::tiles_bytes + L::weights_bytes;
  if (int status = shared_memory_for(c, bytes, arg.head_dim)) return status;
  if (int status = check(c,
                         launch(plain_keys_backward_kernel<T, D, a>, dim3(unsigned(slots * arg.kv_heads)), dim3(plain_threads),
                                bytes, c.stream, arg),
                         "attention_backward"))
    return status;
  return check(c,
               launch(plain_queries_backward_kernel<T, D, a>, dim3(unsigned(slots * arg.heads)), dim3(plain_threads), bytes,
                      c.stream, arg, int(slots)),
               "attention_backward");
}

}  // namespace

template <class T>
int attention_plain(Context& c, const Attention<T>& a) {
  if (a.head_dim <= 32) return forward<T, 32, 4>(c, a);
  if (a.head_dim <= 64) return forward<T, 64, 4>(c, a);
  if (a.head_dim <= 128) return forward<T, 128, 4>(c, a);
  if (a.head_dim <= 256) return forward<T, 256, 2>(c, a);
  if (a.head_dim <= 512) return forward<T, 512, 2>(c, a);
  return fail(c, "attention: head sizes up to 512, not " + std::to_string(a.head_dim));
}

template <class T>
int attention_backward_plain(Context& c, const Attention<T>& a) {
  if (a.head_dim <= 32) return backward<T, 32, 4>(c, a);
  if (a.head_dim <= 64) return backward<T, 64, 4>(c, a);
  if (a.head_dim <= 128) return backward<T, 128, 4>(c, a);
  if (a.head_dim <= 256) return backward<T, 256, 2>(c, a);
  if (a.head_dim <= 512) return backward<T, 512, 2>(c, a);
  return fail(c, "attention_backward: head sizes up to 512, not " + std::to_string(a.head_dim));
}

template int attention_plain(Context&, const Attention<float>&);
template int attention_plain(Context&, const Attention<bf16>&);
template int attention_backward_plain(Context&, const Attention<float>&);
template int attention_backward_plain(Context&, const Attention<bf16>&);

}  // namespace looplm::cuda
