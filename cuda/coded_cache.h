// Records of a quantized KV cache (backend.h, LoopCacheCodes), as kernels read them.
#pragma once
#include "context.h"

namespace looplm::cuda {

struct Records {
  int bits, group, kept;
  int words, groups;           // words per group without `kept`; groups per record
  int kept_words, mask_words;  // words per group with `kept`
  int size;                    // words per record

  Records(LoopCacheCodes codes, int64_t width)
      : bits(codes.bits),
        group(codes.group),
        kept(codes.kept),
        words(int(loop_code_words(codes))),
        groups(int(width / codes.group)),
        kept_words(int(loop_kept_words(codes))),
        mask_words(int(loop_mask_words(codes))),
        size(int(loop_record_bytes(codes, width) / 4)) {}

  // Offsets in a record, in words: the masks (with `kept`), the pairs of scale and minimum, the codes of pruned numbers (with
  // `kept`).
  __device__ __forceinline__ int masks_at() const { return groups * kept_words; }
  __device__ __forceinline__ int pairs_at() const { return groups * (kept > 0 ? kept_words + mask_words : words); }
  __device__ __forceinline__ int restored_at() const { return pairs_at() + groups; }
  // Index in a group of the number at a place (8 places per word). If it is `group` or more, the place is empty.
  __device__ __forceinline__ int at_place(int place) const { return place / 8 + place % 8 * words; }

  // The code of number i of group g, in a record with `kept`.
  __device__ __forceinline__ uint32_t pruned_code(const uint32_t* record, int g, int i) const {
    const uint32_t *mask = record + masks_at() + g * mask_words, *codes = record + g * kept_words;
    const int place = i % words * 8 + i / words;
    const uint32_t bit = 1u << place % 32;
    if (!(mask[place / 32] & bit)) return record[restored_at() + g / 4] >> g % 4 * 8 & 0xFF;
    int before = __popc(mask[place / 32] & (bit - 1));
    for (int m = 0; m < place / 32; ++m) before += __popc(mask[m]);
    const int at = 3 * before, shift = at % 32;
    uint32_t code = codes[at / 32] >> shift;
    if (shift > 29) code |= codes[at / 32 + 1] << (32 - shift);
    return 2 * (code & 7);
  }

  // Calls f(e, x) for each e in [0, count), where x is the decoded number first + e of the record. count is at most W.
  template <int W, class F>
  __device__ __forceinline__ void numbers(const uint32_t* record, int first, int count, F f) const {
    int g = first / group, place = first % group, word = place % words, shift = place / words * bits;
    uint32_t pair = record[pairs_at() + g];
#pragma unroll
    for (int e = 0; e < W; ++e) {
      if (e >= count) continue;
      if (place == group) g++, place = word = shift = 0, pair = record[pairs_at() + g];
      if (word == words) word = 0, shift += bits;
      const uint32_t code = kept > 0 ? pruned_code(record, g, place) : record[g * words + word] >> shift & ((1u << bits) - 1);
      f(e, fmaf(bf16_low(pair), float(code), bf16_high(pair)));  // scale and minimum
      ++place, ++word;
    }
  }
  __device__ __forceinline__ float number(const uint32_t* record, int i) const {
    float out = 0;
    numbers<1>(record, i, 1, [&](int, float x) { out = x; });
    return out;
  }
};

}  // namespace looplm::cuda
