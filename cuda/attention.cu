// softmax(scale q·k) v over packed causal segments in bf16 on the tensor cores (math.md §1; Dao, FlashAttention-2,
// 2307.08691). Scores never leave the registers. A block handles 64 · row_tiles query rows of one head, and each of its 4
// warps 16 · row_tiles of them.
#include "attention_tile.h"

namespace looplm::cuda {
namespace {

template <int D, int row_tiles, int keys>
struct Forward {
  static constexpr int rows = 64 * row_tiles, pitch = tile_pitch<D>;
  static constexpr size_t k_at = size_t(rows) * pitch * 2, v_at = k_at + size_t(keys) * pitch * 2,
                          bytes = v_at + size_t(keys) * pitch * 2;
};

template <int D, int m, int keys>
__global__ void __launch_bounds__(attention_threads) attention_kernel(const Attention<bf16> a, int slots) {
  using F = Forward<D, m, keys>;
  const Shared<bf16> q_tile = dynamic_shared<bf16>(0, F::rows * F::pitch),
                     k_tile = dynamic_shared<bf16>(F::k_at, keys * F::pitch),
                     v_tile = dynamic_shared<bf16>(F::v_at, keys * F::pitch);
  // longest rows first: those at the end of a segment see the most keys
  const int head = int(blockIdx.x) % a.heads, slot = slots - 1 - int(blockIdx.x) / a.heads, kv_head = head / a.ratio;
  const int index = segment_of_slot(a.segments, a.segment_count, F::rows, slot);
  const KeyRun run = key_run(a.segments[index]), own{run.begin, run.length, 0, 0};
  const int first = first_of_slot(slot, index, run.begin, F::rows);  // index within the segment
  if (first >= run.length) return;
  // In shared memory, so that it takes no register.
  SHARED_ARRAY(int, two_way, 1);
  if (threadIdx.x == 0) two_way[0] = a.segments[index].two_way;
  const int tiles = (run.visible(first, F::rows, a.segments[index].two_way) + keys - 1) / keys;
  const int row = warp_id() * 16 * m, g = lane_id() / 4, p = lane_id() % 4 * 2;

  load_tile<D, F::rows>(q_tile, a.qkv + a.q_column(head), a.width, a.head_dim, own, first, run.length);
  load_tile<D, keys>(k_tile, a.qkv + a.k_column(kv_head), a.width, a.head_dim, run, 0, run.keys());
  copy_async_commit();

  float out[m][D / 8][4] = {}, largest[m][2], sum[m][2] = {};
#pragma unroll
  for (int i = 0; i < m; ++i) largest[i][0] = largest[i][1] = -INFINITY;
  const float scale = a.scale * log2_e;  // exponentials are computed as powers of 2

#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<0>();
    __syncthreads();  // the keys have arrived, and no thread still reads the values of the last tile
    load_tile<D, keys>(v_tile, a.qkv + a.v_column(kv_head), a.width, a.head_dim, run, tile * keys, run.keys());
    copy_async_commit();

    float s[m][keys / 8][4] = {};
    multiply_transposed<D, m, keys>(s, q_tile, row, k_tile);

    copy_async_wait<0>();
    __syncthreads();  // the values have arrived, and no thread still reads the keys

    if ((tile + 1) * keys > run.prefix + first + 1) {  // some key is beyond the diagonal of some row
      const int last = run.prefix + first + row + g - tile * keys - p;
      const int both_ways = run.prefix + two_way[0] - tile * keys - p;  // all rows see the keys before this one
#pragma unroll
      for (int i = 0; i < m; ++i)
#pragma unroll
        for (int j = 0; j < keys / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (8 * j + e % 2 - 16 * i - e / 2 * 8 > last && 8 * j + e % 2 >= both_ways) s[i][j][e] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = largest[i][half];
#pragma unroll
        for (int j = 0; j < keys / 8; ++j) most = fmaxf(most, fmaxf(s[i][j][2 * half], s[i][j][2 * half + 1]));
        most = warp_max<4>(most);  // the keys of a row are spread over four lanes
        // shrink is exactly 1 if the maximum does not change, so tiles in which a row sees no key leave its sums unchanged.
        // The maximum is -inf only before the first tile, because every row sees its first key.
        const float shrink = fast_exp2((largest[i][half] - most) * scale), shift = __fmul_rn(most, scale);
        largest[i][half] = most;
        float here = 0;
#pragma unroll
        for (int j = 0; j < keys / 8; ++j)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) here += s[i][j][e] = fast_exp2(fmaf(s[i][j][e], scale, -shift));
        sum[i][half] = fmaf(sum[i][half], shrink, here);
#pragma unroll
        for (int j = 0; j < D / 8; ++j) out[i][j][2 * half] *= shrink, out[i][j][2 * half + 1] *= shrink;
      }
    uint32_t weights[m][keys / 16][4];
    round_weights<m, keys>(weights, s);
    if (tile + 1 < tiles)
      load_tile<D, keys>(k_tile, a.qkv + a.k_column(kv_head), a.width, a.head_dim, run, (tile + 1) * keys, run.keys());
    copy_async_commit();
    multiply<D, m, keys>(out, weights, v_tile);
  }

  float factor[m][2];
#pragma unroll
  for (int i = 0; i < m; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = warp_sum<4>(sum[i][half]);
      factor[i][half] = 1 / total;
      const int query = first + row + 16 * i + g + 8 * half;
      if (p == 0 && query < run.length)
        a.lse[int64_t(head) * a.tokens + run.begin + query] = fmaf(largest[i][half], a.scale, logf(total));
    }
  store_rows<D, m>(out, factor, q_tile, row, a.head_dim, [&](int r) {
    return first + r < run.length ? a.out + (run.begin + first + r) * a.out_width + a.q_column(head) : nullptr;
  });
}

template <int D, int m, int keys>
int forward(Context& c, const Attention<bf16>& a) {
  using F = Forward<D, m, keys>;
  const int64_t slots = tile_slots(a.tokens, a.segment_count, F::rows);
  return check(c,
               launch(attention_kernel<D, m, keys>, dim3(unsigned(slots * a.heads)), dim3(attention_threads), F::bytes, c.stream,
                      a, int(slots)),
               "attention");
}

template <class T>
Attention<T> arguments(const LoopAttention& a) {
  return {a.tokens,
          a.heads,
          a.kv_heads,
          a.head_dim,
          float(a.scale),
          a.segments,
          a.segment_count,
          static_cast<const T*>(a.qkv),
          static_cast<T*>(a.out),
          static_cast<float*>(a.lse),
          static_cast<const T*>(a.dout),
          nullptr,
          static_cast<T*>(a.dqkv),
          a.heads / a.kv_heads,
          int64_t(a.heads + 2 * a.kv_heads) * a.head_dim,
          int64_t(a.heads) * a.head_dim};
}

int attention(void* ctx, LoopDType dt, const LoopAttention* a) {
  return with_dtype(ctx, "attention", dt, [&]<class T>(Context& c, T) {
    if constexpr (std::is_same_v<T, bf16>)
      if (tensor_cores_fit(*a)) return attention_bf16(c, arguments<T>(*a));
    return attention_plain(c, arguments<T>(*a));
  });
}

// delta[head, token] = Σ dout · out; one warp per sum.
template <class T>
__global__ void delta_kernel(int64_t rows, int heads, int64_t tokens, int head_dim, const T* dout, const T* out, float* delta) {
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / 32) + warp_id();  // token · heads + head
  float sum = 0;
  if (row < rows)
    for (int e = lane_id(); e < head_dim; e += 32) sum += to_float(dout[row * head_dim + e]) * to_float(out[row * head_dim + e]);
  sum = warp_sum(sum);
  if (row < rows && lane_id() == 0) delta[row % heads * tokens + row / heads] = sum;
}

int attention_backward(void* ctx, LoopDType dt, const LoopAttention* a) {
  return with_dtype(ctx, "attention_backward", dt, [&]<class T>(Context& c, T) {
    Attention<T> arg = arguments<T>(*a);
    const int64_t rows = a->tokens * a->heads;
    auto* delta = static_cast<float*>(scratch(c, size_t(rows) * 4));
    if (!delta) return int(LOOP_OUT_OF_MEMORY);
    arg.delta = delta;
    if (int status = check(c,
                           launch(delta_kernel<T>, dim3(unsigned(ceil_div(rows, 8))), dim3(256), 0, c.stream, rows, a->heads,
                                  a->tokens, a->head_dim, arg.dout, static_cast<const T*>(arg.out), delta),
                           "attention_backward"))
      return status;
    if constexpr (std::is_same_v<T, bf16>)
      if (tensor_cores_fit(*a)) return attention_backward_bf16(c, arg);
    return attention_backward_plain(c, arg);
  });
}

}  // namespace

bool tensor_cores_fit(const LoopAttention& a) {
  bool aligned = a.head_dim % 8 == 0 && a.head_dim <= 128;
  for (const void* p : {a.qkv, static_cast<const void*>(a.out), a.dout, static_cast<const void*>(a.dqkv)})
    aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return aligned;
}

// Two row tiles per warp halve the shared-memory reads per product. With 64 keys per tile, the registers suffice up to head
// size 128.
int attention_bf16(Context& c, const Attention<bf16>& a) {
  if (a.head_dim <= 32) return forward<32, 2, 64>(c, a);
  if (a.head_dim <= 64) return forward<64, 2, 64>(c, a);
  if (a.head_dim <= 96) return forward<96, 2, 64>(c, a);
  return forward<128, 2, 64>(c, a);
}

void add_attention(LoopBackend& table) {
  table.attention = guarded<attention>;
  table.attention_backward = guarded<attention_backward>;
}

}  // namespace looplm::cuda
