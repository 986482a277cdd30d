// How the log-probability of each row becomes its coefficient: a LoopLoss with its arrays on the host.
#pragma once
#include "model.h"
#include "operation_memory.h"

namespace looplm {

struct RowLoss {
  LoopLoss form{};  // the surrogate and its bounds; its arrays are these, empty ones are none
  std::vector<double> scale, advantage, old_logprob, reference_logprob, kl_scale, entropy_scale;
};
inline RowLoss given_coefficients(std::vector<double> coefficients) {
  RowLoss out;
  out.form.surrogate = LOOP_GIVEN;
  out.scale = std::move(coefficients);
  return out;
}

// On the device; valid until the next one of the same model.
LoopLoss upload(Model& model, const RowLoss& loss);

// ∂L/∂ℓ of rows whose log-probabilities, real on the device, are known, and the sums of the loss.
struct Coefficients {
  std::vector<double> values;
  LoopLossSums sums{};
};
Coefficients coefficients_of(Model& model, const LoopLoss& loss, const void* logprobs, size_t rows);
// The sums alone, on the host, where the log-probabilities have come for other reasons: the device made the coefficients within
// the head and needs no second pass over the rows. `real`: what the device rounds the loss's arrays to.
LoopLossSums sums_of(const RowLoss& loss, const std::vector<double>& logprobs, LoopDType real);

}  // namespace looplm
