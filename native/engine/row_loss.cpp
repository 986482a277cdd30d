#include "row_loss.h"

#include "../token_loss.h"

namespace looplm {

LoopLoss upload(Model& model, const RowLoss& loss) {
  RowLossMemory& memory = model.memory().loss;
  const auto on_device = [&](Buffer& buffer, const std::vector<double>& values) -> const void* {
    if (values.empty()) return nullptr;
    buffer.reserve(model.device, values.size() * loop_dtype_size(model.real()));
    upload_reals(buffer, model.dt, values.data(), values.size());
    return buffer.as<>();
  };
  LoopLoss out = loss.form;
  out.scale = on_device(memory.scale, loss.scale);
  out.advantage = on_device(memory.advantage, loss.advantage);
  out.old_logprob = on_device(memory.old_logprob, loss.old_logprob);
  out.reference_logprob = on_device(memory.reference_logprob, loss.reference_logprob);
  out.kl_scale = on_device(memory.kl_scale, loss.kl_scale);
  out.entropy_scale = on_device(memory.entropy_scale, loss.entropy_scale);
  return out;
}

Coefficients coefficients_of(Model& model, const LoopLoss& loss, const void* logprobs, size_t rows) {
  Buffer& buffer = model.memory().loss.coefficients;
  buffer.reserve(model.device, rows * loop_dtype_size(model.real()));
  Coefficients out;
  model.device->run(&LoopBackend::policy_gradient, "policy gradient", model.dt, int64_t(rows), logprobs,
                    static_cast<const LoopLoss*>(&loss), buffer.as<>(), &out.sums);
  out.values = download_reals(buffer, model.dt, rows);
  return out;
}

LoopLossSums sums_of(const RowLoss& loss, const std::vector<double>& logprobs, LoopDType real) {
  const auto at = [real](const std::vector<double>& values, size_t i) {
    return values.empty() ? 0.0 : real == LOOP_F64 ? values[i] : double(float(values[i]));
  };
  TokenLossForm form = token_loss_form(loss.form);
  form.has_old = !loss.old_logprob.empty();
  LoopLossSums sums{};
  for (size_t i = 0; i < logprobs.size(); i++)
    token_loss(
        form,
        {at(loss.scale, i), at(loss.advantage, i), at(loss.old_logprob, i), at(loss.reference_logprob, i), at(loss.kl_scale, i)},
        logprobs[i], sums);
  return sums;
}

}  // namespace looplm
