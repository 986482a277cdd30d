// How the log-probability of each row becomes its coefficient: a LoopLoss whose arrays are on the host.
#pragma once
#include "model.h"
#include "operation_memory.h"

namespace looplm {

struct RowLoss {
  LoopLoss form{};  // the surrogate and its bounds; the vectors below are its arrays, where empty means NULL
  std::vector<double> scale, advantage, old_logprob, reference_logprob, kl_scale, entropy_scale;
};
inline RowLoss given_coefficients(std::vector<double> coefficients) {
  RowLoss out;
  out.form.surrogate = LOOP_GIVEN;
  out.scale = std::move(coefficients);
  return out;
}

// Copies the arrays to the device. Valid until the next upload for the same model.
LoopLoss upload(Model& model, const RowLoss& loss);

// ∂L/∂ℓ of rows whose log-probabilities are already on the device (real), and the sums of the loss.
struct Coefficients {
  std::vector<double> values;
  LoopLossSums sums{};
};
Coefficients coefficients_of(Model& model, const LoopLoss& loss, const void* logprobs, size_t rows);
// Only the sums, computed on the host from downloaded log-probabilities: the head has already used the coefficients on the
// device, so no second kernel is needed. real: the dtype to which the device rounds the loss's arrays.
LoopLossSums sums_of(const RowLoss& loss, const std::vector<double>& logprobs, LoopDType real);

}  // namespace looplm
