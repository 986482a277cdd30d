#include <cmath>

#include "../numeric/philox.h"
#include "../numeric/sampling.h"
#include "context.h"

namespace looplm::reference {
namespace {

int sample(void* ctx, LoopDType dt, const LoopSample* s) {
  if (int status = require_float64(ctx, dt, "sample")) return status;
  const SampleOptions options{s->temperature, s->top_k, s->top_p, s->min_p};
  SampleScratch<double> scratch;
  for (int64_t i = 0; i < s->rows; ++i) {
    const double* logits = static_cast<const double*>(s->logits) + i * s->vocabulary;
    const double draw = uniform(s->seed, uint32_t(s->sequences[i]), uint32_t(s->positions[i]));
    const SampledToken<double> sampled = sample_row(logits, s->vocabulary, options, draw, scratch);
    s->tokens[i] = sampled.token;
    static_cast<double*>(s->logprobs)[i] = sampled.logprob;
  }
  return 0;
}

int edit_logits(void* ctx, LoopDType dt, const LoopLogitEdits* e) {
  if (int status = require_float64(ctx, dt, "edit_logits")) return status;
  auto* logits = static_cast<double*>(e->logits);
  for (int64_t i = 0; i < e->count; ++i) {
    const LoopLogitEdit& edit = e->edits[i];
    logits[edit.place] = edited_logit(logits[edit.place], edit.bias, edit.repetition, edit.penalty);
  }
  const int64_t words = (e->vocabulary + 31) / 32;
  for (int64_t i = 0; e->allowed && i < e->rows; ++i)
    for (int64_t v = 0; v < e->vocabulary; ++v)
      if (!(e->allowed[i * words + v / 32] >> (v % 32) & 1)) logits[i * e->vocabulary + v] = -INFINITY;
  return 0;
}

}  // namespace

void add_sample(LoopBackend& table) {
  table.sample = sample;
  table.edit_logits = edit_logits;
}

}  // namespace looplm::reference
