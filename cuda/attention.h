// Shared by the attention kernels: their arguments, which rows a block handles, and which token a key belongs to.
//
// The keys of a segment are those of its prefix, then its own. Key j is token prefix_begin + j for j < prefix, else token
// begin + j - prefix. Query i of the segment (token begin + i) sees the keys 0 … prefix + i. Queries i < two_way see all keys
// before prefix + two_way. Blocks never cross segments, so a row's arithmetic depends only on its position in its segment.
#pragma once
#include <climits>

#include "context.h"

namespace looplm::cuda {

template <class T>
struct Attention {
  int64_t tokens;
  int heads, kv_heads, head_dim;
  float scale;
  const LoopSegment* segments;
  int segment_count;
  const T* qkv;
  T* out;
  float* lse;          // [heads, tokens]
  const T* dout;       // backward only
  const float* delta;  // [heads, tokens]: Σ dout · out per row
  T* dqkv;

  int ratio;                 // query heads per key head
  int64_t width, out_width;  // row widths of qkv and of out

  // The column of a row of qkv at which a head starts.
  __device__ int q_column(int head) const { return head * head_dim; }
  __device__ int k_column(int kv_head) const { return (heads + kv_head) * head_dim; }
  __device__ int v_column(int kv_head) const { return (heads + kv_heads + kv_head) * head_dim; }
};

// The keys that the queries of a segment see.
struct KeyRun {
  int begin, length, prefix_begin, prefix;
  __device__ int keys() const { return prefix + length; }
  // Number of keys that some query of [first, first + rows) sees.
  __device__ int visible(int first, int rows, int two_way) const { return prefix + max(min(first + rows, length), two_way); }
  __device__ int64_t token(int key) const { return key < prefix ? prefix_begin + key : begin + key - prefix; }
};

__device__ __forceinline__ KeyRun key_run(const LoopSegment& s) {
  return {s.begin, s.end - s.begin, s.prefix_begin, s.prefix_end - s.prefix_begin};
}

// Blocks of `rows` tokens each. Segment s gets the slots from begin / rows + s on. That is never too few, so no table of
// blocks is needed, but some slots stay empty.
inline int64_t tile_slots(int64_t tokens, int segment_count, int rows) { return tokens / rows + segment_count; }

// Finds the segment of a slot. The whole warp searches, 32 segments at a time; segments are sorted by their tokens. Slots
// of tokens before the first segment, which are a cached prefix, get the first segment.
__device__ __forceinline__ int segment_of_slot(const LoopSegment* segments, int segment_count, int rows, int slot) {
  int low = 0, count = segment_count;
  while (count > 1) {
    const int stride = (count + 31) / 32, offset = lane_id() * stride;
    const bool before = offset < count && segments[low + (offset < count ? offset : 0)].begin / rows + low + offset <= slot;
    const int found = max(__popc(__ballot_sync(full_warp, before)) - 1, 0) * stride;
    low += found;
    count = min(stride, count - found);
  }
  return low;
}

// The first token of a slot's block, counted from the segment's begin; INT_MAX where the slot lies before the segment.
__device__ __forceinline__ int first_of_slot(int slot, int index, int begin, int rows) {
  const int block = slot - index - begin / rows;
  return block < 0 ? INT_MAX : block * rows;
}

constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

// bf16 on the tensor cores. Head size: a multiple of 8, at most 128; rows must be 16-byte aligned.
bool tensor_cores_fit(const LoopAttention& a);
int attention_bf16(Context& c, const Attention<bf16>& a);
int attention_backward_bf16(Context& c, const Attention<bf16>& a);
// Any head size up to 512; computes in float32.
template <class T>
int attention_plain(Context& c, const Attention<T>& a);
template <class T>
int attention_backward_plain(Context& c, const Attention<T>& a);

}  // namespace looplm::cuda
