#include "row_loss.h"

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

namespace {

LoopLossSums reduce(Model& model, const LoopLoss& loss, const void* logprobs, size_t rows, void* coefficients) {
  LoopLossSums sums{};
  model.device->run(&LoopBackend::policy_gradient, "policy gradient", model.dt, int64_t(rows), logprobs,
                    static_cast<const LoopLoss*>(&loss), coefficients, &sums);
  return sums;
}

}  // namespace

Coefficients coefficients_of(Model& model, const LoopLoss& loss, const void* logprobs, size_t rows) {
  Buffer& buffer = model.memory().loss.coefficients;
  buffer.reserve(model.device, rows * loop_dtype_size(model.real()));
  Coefficients out;
  out.sums = reduce(model, loss, logprobs, rows, buffer.as<>());
  out.values = download_reals(buffer, model.dt, rows);
  return out;
}

LoopLossSums sums_of(Model& model, const LoopLoss& loss, const void* logprobs, size_t rows) {
  return reduce(model, loss, logprobs, rows, nullptr);
}

}  // namespace looplm
