// Records of a cache in few bits (backend.h, LoopCacheCodes), as kernels read them.
#pragma once
#include "context.h"

namespace looplm::cuda {

struct Records {
  int bits, group;
  int words, groups;  // words of a group's codes, groups of a record
  int size;           // words of a record

  Records(LoopCacheCodes codes, int64_t width)
      : bits(codes.bits),
        group(codes.group),
        words(int(loop_code_words(codes))),
        groups(int(width / codes.group)),
        size(int(loop_record_bytes(codes, width) / 4)) {}

  // f(e, x) for e in [0, count), at most W: number first + e of the record stands for x.
  template <int W, class F>
  __device__ __forceinline__ void numbers(const uint32_t* record, int first, int count, F f) const {
    int g = first / group, place = first % group, word = place % words, shift = place / words * bits;
    uint32_t pair = record[groups * words + g];
#pragma unroll
    for (int e = 0; e < W; ++e) {
      if (e >= count) continue;
      if (place == group) g++, place = word = shift = 0, pair = record[groups * words + g];
      if (word == words) word = 0, shift += bits;
      const uint32_t code = record[g * words + word] >> shift & ((1u << bits) - 1);
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
