// Decoding one new token per row: stores its key and value in the cache, and computes attention over the cache (math.md §7).
#include "decoded_row.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

// Attention of one row for the key heads [first, first + count). scratch: head_dim + 1 + context floats for each of their
// query heads.
template <class E>
void attend(const LoopDecodeAttention& a, int64_t row, int32_t first, int32_t count, int64_t context, const int64_t* offsets,
            float* scratch) {
  const int64_t head_dim = a.head_dim, group = a.heads / a.kv_heads, begin = first * group;
  const int32_t heads = int32_t(count * group);
  const E* q = static_cast<const E*>(a.qkv) + (row * (a.heads + 2 * a.kv_heads) + begin) * head_dim;
  float *sums = scratch, *totals = sums + heads * head_dim, *scores = totals + heads;
  memset(sums, 0, size_t(heads * head_dim) * sizeof(float));
  with_vectors(head_dim, [&](auto c) {
    const DecodedRow<E, decltype(c)::value> of{head_dim,
                                               context,
                                               count,
                                               int32_t(group),
                                               offsets,
                                               static_cast<const E*>(a.keys) + first * head_dim,
                                               static_cast<const E*>(a.values) + first * head_dim,
                                               q,
                                               float(a.scale),
                                               scores,
                                               context,
                                               sums};
    of.score();
    weigh(heads, context, scores, totals);
    of.add();
  });
  divide(heads, head_dim, sums, totals, static_cast<E*>(a.out) + (row * a.heads + begin) * head_dim);
}

template <class E>
void decode_rows(Context& ctx, const LoopDecodeAttention& a) {
  const int64_t group = a.heads / a.kv_heads;
  int64_t keys = 0, longest = 0;
  for (int64_t i = 0; i < a.rows; i++) {
    const int64_t context = length_of(a.contexts[i]);
    keys += context;
    if (context > longest) longest = context;
  }
  for_key_heads(ctx, a, keys, 4, size_t(longest) * 8, size_t(group * (a.head_dim + 1 + longest)) * 4,
                [&](int64_t row, int32_t first, int32_t count, char* scratch) {
                  auto* offsets = reinterpret_cast<int64_t*>(scratch);
                  slot_offsets(a.contexts[row], int64_t(a.kv_heads) * a.head_dim, offsets);
                  attend<E>(a, row, first, count, length_of(a.contexts[row]), offsets,
                            reinterpret_cast<float*>(offsets + longest));
                });
}

}  // namespace

int cache_write(void* context, LoopDType dt, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim,
                const int32_t* slots, const void* qkv, void* keys, void* values) {
  const int64_t size = int64_t(loop_dtype_size(dt)), width = int64_t(kv_heads) * head_dim * size,
                before = int64_t(heads) * head_dim * size;
  const auto* from = static_cast<const char*>(qkv);
  auto *k = static_cast<char*>(keys), *v = static_cast<char*>(values);
  for_rows(*static_cast<Context*>(context), rows, 2 * int64_t(kv_heads) * head_dim, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const char* row = from + i * (before + 2 * width) + before;
      memcpy(k + slots[i] * width, row, size_t(width));
      memcpy(v + slots[i] * width, row + width, size_t(width));
    }
  });
  return 0;
}

int decode_attention(void* context, LoopDType dt, const LoopDecodeAttention* a) {
  if (a->rows > 0) (dt == LOOP_BF16 ? decode_rows<bf16> : decode_rows<float>)(*static_cast<Context*>(context), *a);
  return 0;
}

}  // namespace looplm::cpu::LOOPLM_ISA
