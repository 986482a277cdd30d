#include "filtered.h"

#include <algorithm>
#include <cstring>

#include "../numeric/philox.h"
#include "../numeric/sampling.h"
#include "context.h"

namespace looplm::cpu {

namespace {

// x [32]: elements whose bit in `word` is 0 become -infinity. Without branches, four lanes at a time, on every instruction
// set.
void apply_word(uint32_t word, float* x) {
  typedef uint32_t bits __attribute__((vector_size(16)));
  const bits lanes = {1, 2, 4, 8}, banned = {0xff800000u, 0xff800000u, 0xff800000u, 0xff800000u};
  for (int i = 0; i < 32; i += 4) {
    bits value;
    memcpy(&value, x + i, sizeof value);
    const bits allowed = bits(((bits{} + (word >> i)) & lanes) == lanes);
    value = (value & allowed) | (banned & ~allowed);
    memcpy(x + i, &value, sizeof value);
  }
}

// x [n]: elements whose bit is 0 become -infinity.
void apply_mask(const uint32_t* allowed, int64_t n, float* x) {
  const float banned = -__builtin_inff();
  for (int64_t v = 0; v < n; v += 32) {
    const uint32_t word = allowed[v / 32];
    const int64_t end = std::min(v + 32, n);
    if (word == ~0u) continue;
    if (word == 0) std::fill(x + v, x + end, banned);
    else if (end - v == 32) apply_word(word, x + v);
    else
      for (int64_t i = v; i < end; i++) x[i] = word >> (i - v) & 1 ? x[i] : banned;
  }
}

}  // namespace

int edit_logits(void* context, LoopDType, const LoopLogitEdits* e) {
  auto& ctx = *static_cast<Context*>(context);
  auto* logits = static_cast<float*>(e->logits);
  for (int64_t i = 0; i < e->count; i++) {
    const LoopLogitEdit& edit = e->edits[i];
    logits[edit.place] = edited_logit(logits[edit.place], edit.bias, edit.repetition, edit.penalty);
  }
  const int64_t n = e->vocabulary, words = (n + 31) / 32;
  if (e->allowed)
    for_rows(ctx, e->rows, n, [=](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) apply_mask(e->allowed + i * words, n, logits + i * n);
    });
  return 0;
}

double draw_number(uint64_t seed, int32_t sequence, int32_t position) {
  return uniform(seed, uint32_t(sequence), uint32_t(position));
}

NucleusEnd end_of_nucleus(const float* weights, int32_t* candidates, int64_t count, double mass, double wanted) {
  const auto more_likely = [&](int32_t a, int32_t b) { return weights[a] > weights[b] || (weights[a] == weights[b] && a < b); };
  if (!std::is_sorted(candidates, candidates + count, more_likely)) std::sort(candidates, candidates + count, more_likely);
  int64_t taken = 0;
  do mass += double(weights[candidates[taken++]]);
  while (mass < wanted && taken < count);
  const int32_t last = candidates[taken - 1];
  return {weights[last], last};
}

}  // namespace looplm::cpu
