// The backward pass of attention.cu in two kernels. Each kernel exclusively owns its outputs, so no sum depends on the order
// of blocks:
//   keys:     a block has 64 keys and loops over the queries that see them: ∂v = Σ p ∂out, ∂k = scale Σ ∂s q
//   queries:  a block has some query rows and loops over their keys: ∂q = scale Σ ∂s k
// Both recompute p = exp(scale q·k - lse) and ∂s = p (∂out·v - delta). That is two more products than in one kernel with
// atomic sums.
#include "attention_tile.h"

namespace looplm::cuda {
namespace {

// ---- Keys and values. A warp has 16 keys. Scores are transposed, [keys, queries], so that they are the A operand of both
// sums.

template <int D, int queries>
struct KeysBackward {
  static constexpr int keys = 64, pitch = tile_pitch<D>;
  static constexpr size_t row_bytes = size_t(pitch) * 2, k_at = 0, v_at = k_at + keys * row_bytes, q_at = v_at + keys * row_bytes,
                          dout_at = q_at + 2 * queries * row_bytes, statistics_at = dout_at + 2 * queries * row_bytes,
                          bytes = statistics_at + 4 * queries * 4;
};

// The tiles of queries that see the keys of a block. First those of the keys' own segment, from the first key on (or from the
// start of the segment, if the keys begin in its bidirectional part). Then all queries of every segment whose prefix is this
// segment. For each segment, all query heads of the group, tile by tile.
struct QueryTile {
  int segment, begin, length, head, first;  // first: index in the segment. segment -1: no more tiles
};

template <int D, int queries>
__global__ void __launch_bounds__(attention_threads) keys_backward_kernel(const Attention<bf16> a) {
  using B = KeysBackward<D, queries>;
  constexpr int keys = B::keys, pitch = B::pitch;
  static_assert(queries == keys, "tiles of the own segment behind that of the keys see all of them");
  const Shared<bf16> k_tile = dynamic_shared<bf16>(B::k_at, keys * pitch), v_tile = dynamic_shared<bf16>(B::v_at, keys * pitch),
                     q_tiles = dynamic_shared<bf16>(B::q_at, 2 * queries * pitch),
                     dout_tiles = dynamic_shared<bf16>(B::dout_at, 2 * queries * pitch);
  const Shared<float> statistics = dynamic_shared<float>(B::statistics_at, 4 * queries);  // [2][lse, delta][queries]
  SHARED_ARRAY(QueryTile, plan, 2);
  const int kv_head = int(blockIdx.x) % a.kv_heads, slot = int(blockIdx.x) / a.kv_heads;
  const int own_index = segment_of_slot(a.segments, a.segment_count, keys, slot);
  const LoopSegment own_segment = a.segments[own_index];
  const KeyRun own{own_segment.begin, own_segment.end - own_segment.begin, 0, 0};
  const int first_key = first_of_slot(slot, own_index, own.begin, keys);  // of the segment
  if (first_key >= own.length) return;
  const int first_query = first_key < own_segment.two_way ? 0 : first_key;
  const int row = warp_id() * 16, g = lane_id() / 4, p = lane_id() % 4 * 2;

  const auto after = [&](QueryTile t) {
    t.first += queries;
    if (t.segment < 0 || t.first < t.length) return t;
    t.first = t.begin == own.begin ? first_query : 0;
    if (++t.head < (kv_head + 1) * a.ratio) return t;
    t.head = kv_head * a.ratio;
    t.first = 0;
    while (++t.segment < a.segment_count) {
      const LoopSegment reader = a.segments[t.segment];
      if (reader.prefix_begin != own.begin || reader.prefix_end == reader.prefix_begin) break;
      t.begin = reader.begin;
      t.length = reader.end - reader.begin;
      if (t.length > 0) return t;
    }
    t.segment = -1;
    return t;
  };
  const auto load_queries = [&](const QueryTile& t, int buffer) {
    const KeyRun run{t.begin, t.length, 0, 0};
    load_tile<D, queries>(q_tiles + buffer * queries * pitch, a.qkv + a.q_column(t.head), a.width, a.head_dim, run, t.first,
                          t.length);
    load_tile<D, queries>(dout_tiles + buffer * queries * pitch, a.dout + a.q_column(t.head), a.out_width, a.head_dim, run,
                          t.first, t.length);
    for (int i = int(threadIdx.x); i < 2 * queries; i += attention_threads) {
      const int query = t.first + i % queries;
      const float* from = i < queries ? a.lse : a.delta;
      const bool inside = query < t.length;
      copy_async<4>(statistics + buffer * 2 * queries + i, from + (inside ? int64_t(t.head) * a.tokens + t.begin + query : 0),
                    inside ? 4 : 0);
    }
  };

  {
    const QueryTile first{own_index, own.begin, own.length, kv_head * a.ratio, first_query};
    load_tile<D, keys>(k_tile, a.qkv + a.k_column(kv_head), a.width, a.head_dim, own, first_key, own.length);
    load_tile<D, keys>(v_tile, a.qkv + a.v_column(kv_head), a.width, a.head_dim, own, first_key, own.length);
    load_queries(first, 0);
    copy_async_commit();
    if (threadIdx.x == 0) plan[1] = after(first);
  }

  float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
  const float scale = a.scale * log2_e;
  bool more = true, masked = true;
  int query = first_query;  // first query of the tile, as an index in its segment
#pragma unroll 1
  for (int buffer = 0; more; buffer ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // these queries have arrived, and no thread still reads the ones before
    // The plan of the next tile is computed one tile ahead, in shared memory, so that it takes no registers.
    {
      const QueryTile next = plan[buffer ^ 1];
      if (next.segment >= 0) load_queries(next, buffer ^ 1);
      copy_async_commit();
      if (threadIdx.x == 0) plan[buffer] = after(next);
    }
    const Shared<bf16> q_tile = q_tiles + buffer * queries * pitch, dout_tile = dout_tiles + buffer * queries * pitch;
    const Shared<float> lse = statistics + buffer * 2 * queries, delta = lse + queries;
    float s[1][queries / 8][4] = {};
    multiply_transposed<D, 1, queries>(s, k_tile, row, q_tile);
    // From scores to probabilities. Rows after the end of the segment have zeros in dout and delta, so they add nothing.
#pragma unroll
    for (int j = 0; j < queries / 8; ++j) {
      const float2 shift = shared_cast<float2>(lse + 8 * j + p)[0];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[0][j][e] = fast_exp2(fmaf(s[0][j][e], scale, -log2_e * (e % 2 ? shift.y : shift.x)));
        const int key = first_key + row + g + e / 2 * 8;
        if (masked && key > query + 8 * j + p + e % 2 && key >= own_segment.two_way) s[0][j][e] = 0;
      }
    }
    uint32_t weights[1][queries / 16][4];
    round_weights<1, queries>(weights, s);
    multiply<D, 1, queries>(dv, weights, dout_tile);

    float ds[1][queries / 8][4];
#pragma unroll
    for (int j = 0; j < queries / 8; ++j) {
      const float2 shift = shared_cast<float2>(delta + 8 * j + p)[0];
      ds[0][j][0] = ds[0][j][2] = -shift.x;
      ds[0][j][1] = ds[0][j][3] = -shift.y;
    }
    multiply_transposed<D, 1, queries>(ds, v_tile, row, dout_tile);
    // Uses the rounded probabilities again, because there are not enough registers to keep both.
#pragma unroll
    for (int j = 0; j < queries / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t pair = weights[0][j / 2][j % 2 * 2 + half];
        ds[0][j][2 * half] *= bf16_low(pair);
        ds[0][j][2 * half + 1] *= bf16_high(pair);
      }
    round_weights<1, queries>(weights, ds);
    multiply<D, 1, queries>(dk, weights, q_tile);
    const QueryTile next = plan[buffer ^ 1];
    more = next.segment >= 0;
    masked = next.begin == own.begin && next.first <= first_key;
    query = next.first;
  }
  const float k_factor[1][2] = {{a.scale, a.scale}}, v_factor[1][2] = {{1, 1}};
  const auto to = [&](int column, int r) {
    return first_key + r < own.length ? a.dqkv + (own.begin + first_key + r) * a.width + column : nullptr;
  };
  store_rows<D, 1>(dk, k_factor, k_tile, row, a.head_dim, [&](int r) { return to(a.k_column(kv_head), r); });
  store_rows<D, 1>(dv, v_factor, v_tile, row, a.head_dim, [&](int r) { return to(a.v_column(kv_head), r); });
}

// ---- Queries. Like the forward kernel, with 32 keys at a time in two buffers.

template <int D, int m, int keys>
struct QueriesBackward {
  static constexpr int rows = 64 * m, pitch = tile_pitch<D>;
  static constexpr size_t row_bytes = size_t(pitch) * 2, q_at = 0, dout_at = rows * row_bytes, k_at = dout_at + rows * row_bytes,
                          v_at = k_at + 2 * keys * row_bytes, statistics_at = v_at + 2 * keys * row_bytes,
                          bytes = statistics_at + 2 * rows * 4;
};

template <int D, int m, int keys>
__global__ void __launch_bounds__(attention_threads) queries_backward_kernel(const Attention<bf16> a, int slots) {
  using B = QueriesBackward<D, m, keys>;
  constexpr int pitch = B::pitch;
  const Shared<bf16> q_tile = dynamic_shared<bf16>(B::q_at, B::rows * pitch),
                     dout_tile = dynamic_shared<bf16>(B::dout_at, B::rows * pitch),
                     k_tiles = dynamic_shared<bf16>(B::k_at, 2 * keys * pitch),
                     v_tiles = dynamic_shared<bf16>(B::v_at, 2 * keys * pitch);
  const Shared<float> lse = dynamic_shared<float>(B::statistics_at, B::rows),
                      delta = dynamic_shared<float>(B::statistics_at + B::rows * 4, B::rows);
  const int head = int(blockIdx.x) % a.heads, slot = slots - 1 - int(blockIdx.x) / a.heads, kv_head = head / a.ratio;
  const int index = segment_of_slot(a.segments, a.segment_count, B::rows, slot);
  const KeyRun run = key_run(a.segments[index]), own{run.begin, run.length, 0, 0};
  const int first = first_of_slot(slot, index, run.begin, B::rows);
  if (first >= run.length) return;
  const bf16 *k = a.qkv + a.k_column(kv_head), *v = a.qkv + a.v_column(kv_head);
  SHARED_ARRAY(int, two_way, 1);
  if (threadIdx.x == 0) two_way[0] = a.segments[index].two_way;
  const int visible = run.visible(first, B::rows, a.segments[index].two_way), tiles = (visible + keys - 1) / keys;
  const int row = warp_id() * 16 * m, g = lane_id() / 4, p = lane_id() % 4 * 2;

  load_tile<D, B::rows>(q_tile, a.qkv + a.q_column(head), a.width, a.head_dim, own, first, run.length);
  load_tile<D, B::rows>(dout_tile, a.dout + a.q_column(head), a.out_width, a.head_dim, own, first, run.length);
  load_tile<D, keys>(k_tiles, k, a.width, a.head_dim, run, 0, visible);
  load_tile<D, keys>(v_tiles, v, a.width, a.head_dim, run, 0, visible);
  copy_async_commit();

  if (int(threadIdx.x) < B::rows) {
    const int query = first + int(threadIdx.x);
    const int64_t at = int64_t(head) * a.tokens + run.begin + query;
    lse[threadIdx.x] = query < run.length ? a.lse[at] * log2_e : 0.0f;
    delta[threadIdx.x] = query < run.length ? a.delta[at] : 0.0f;
  }

  float dq[m][D / 8][4] = {};
  const float scale = a.scale * log2_e;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    const int buffer = tile % 2 * keys * pitch;
    copy_async_wait<0>();
    __syncthreads();  // the keys and values have arrived, and no thread still reads the ones before
    if (tile + 1 < tiles) {
      load_tile<D, keys>(k_tiles + (keys * pitch - buffer), k, a.width, a.head_dim, run, (tile + 1) * keys, visible);
      load_tile<D, keys>(v_tiles + (keys * pitch - buffer), v, a.width, a.head_dim, run, (tile + 1) * keys, visible);
    }
    copy_async_commit();

    float s[m][keys / 8][4] = {}, ds[m][keys / 8][4];
    multiply_transposed<D, m, keys>(s, q_tile, row, k_tiles + buffer);
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
        const float shift = lse[row + 16 * i + g + 8 * half], start = -delta[row + 16 * i + g + 8 * half];
#pragma unroll
        for (int j = 0; j < keys / 8; ++j)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[i][j][e] = fast_exp2(fmaf(s[i][j][e], scale, -shift));
            ds[i][j][e] = start;
          }
      }
    multiply_transposed<D, m, keys>(ds, dout_tile, row, v_tiles + buffer);
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
      for (int j = 0; j < keys / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[i][j][e] *= s[i][j][e];
    uint32_t weights[m][keys / 16][4];
    round_weights<m, keys>(weights, ds);
    multiply<D, m, keys>(dq, weights, k_tiles + buffer);
  }
  float factor[m][2];
#pragma unroll
  for (int i = 0; i < m; ++i) factor[i][0] = factor[i][1] = a.scale;
  store_rows<D, m>(dq, factor, q_tile, row, a.head_dim, [&](int r) {
    return first + r < run.length ? a.dqkv + (run.begin + first + r) * a.width + a.q_column(head) : nullptr;
  });
}

template <int D, int queries, int m, int keys>
int backward(Context& c, const Attention<bf16>& a) {
  using K = KeysBackward<D, queries>;
  using Q = QueriesBackward<D, m, keys>;
  const int64_t key_slots = tile_slots(a.tokens, a.segment_count, K::keys),
                query_slots = tile_slots(a.tokens, a.segment_count, Q::rows);
  if (int status = check(c,
                         launch(keys_backward_kernel<D, queries>, dim3(unsigned(key_slots * a.kv_heads)), dim3(attention_threads),
                                K::bytes, c.stream, a),
                         "attention_backward"))
    return status;
  return check(c,
               launch(queries_backward_kernel<D, m, keys>, dim3(unsigned(query_slots * a.heads)), dim3(attention_threads),
                      Q::bytes, c.stream, a, int(query_slots)),
               "attention_backward");
}

}  // namespace

int attention_backward_bf16(Context& c, const Attention<bf16>& a) {
  // chips with 99 KiB of shared memory per block (8.6, 8.9, 12.0) lack 4 KiB at head size 128
  int limit = 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, c.device);
  if (a.head_dim > 96 && int(QueriesBackward<128, 2, 32>::bytes) > limit) return attention_backward_plain(c, a);
  if (a.head_dim <= 32) return backward<32, 64, 2, 64>(c, a);
  if (a.head_dim <= 64) return backward<64, 64, 2, 32>(c, a);
  if (a.head_dim <= 96) return backward<96, 64, 2, 32>(c, a);
  return backward<128, 64, 2, 32>(c, a);
}

}  // namespace looplm::cuda
