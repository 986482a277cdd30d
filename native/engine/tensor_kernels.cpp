#include "tensor_kernels.h"

#include <algorithm>
#include <cmath>

#include "head.h"
#include "stack.h"

namespace looplm {

namespace {

void require_shape(const Tensor& x, const Shape& shape, const char* operation, const char* name) {
  if (x.shape == shape) return;
  throw Error("INVALID_SHAPE", operation,
              std::string(name) + " must have shape " + to_string(shape) + ", got " + to_string(x.shape));
}

void require_like(const Tensor& x, const Tensor& like, const char* operation, const char* name) {
  if (x.dtype != like.dtype || x.device != like.device)
    throw Error(
        "INVALID_ARGUMENT", operation,
        std::string(name) + " must have the dtype (" + loop_dtype_name(like.dtype) + ") and the device of the first tensor");
}

}  // namespace

LoopedStates looped_block_forward(const Tensor& hidden, const Architecture& architecture, const std::vector<Tensor>& weights,
                                  const std::vector<std::string>& names, const std::vector<int32_t>& offsets) {
  const char* const operation = "loopedBlockForward";
  const int64_t N = hidden.shape[0], T = architecture.loops;
  Sequences sequences;
  sequences.tokens.assign(size_t(N), 0);
  sequences.offsets.assign(offsets.begin(), offsets.end());
  for (size_t i = 0; i < sequences.count(); i++)
    if (sequences.length(i) < 1) throw Error("INVALID_ARGUMENT", operation, "offsets must increase");
  if (sequences.count() < 1 || sequences.offsets.front() != 0 || sequences.offsets.back() != N)
    throw Error("INVALID_ARGUMENT", operation, "offsets must go from 0 to the " + std::to_string(N) + " rows of hidden");

  Model model(hidden.device, hidden.dtype, architecture);
  const std::vector<Parameter>& parameters = model.parameters();
  if (weights.size() + 1 != parameters.size() || names.size() != weights.size())
    throw Error("INVALID_ARGUMENT", operation, "there must be a weight for every parameter except the embedding");
  for (size_t i = 0; i < weights.size(); i++) {
    const Parameter& p = parameters[i + 1];
    const Tensor& x = weights[i];
    require_like(x, hidden, operation, names[i].c_str());
    if (x.size() != int64_t(p.count) || (p.decays() && p.shape[0] > 1)) require_shape(x, p.shape, operation, names[i].c_str());
    model.device->run(&LoopBackend::copy, operation, model.writable_data(p), x.data(), x.buffer->bytes());
  }
  LoopedStates out{allocate(hidden.device, hidden.dtype, {T, N, architecture.hidden}, operation),
                   allocate(hidden.device, loop_real(hidden.dtype), {T, N}, operation)};
  const PackedBatch batch = pack(sequences, 0, {N, false, false, true});
  Stack stack(model, model.weights(), upload(batch, model.device, model.memory().batch), int(T), Stack::Keep::nothing);
  stack.forward_states(hidden.data());
  model.device->run(&LoopBackend::copy, operation, out.hidden.data(), stack.hidden(), out.hidden.buffer->bytes());
  stack.gate_logits(out.gate_logits.data());
  return out;
}

TokenScores per_loop_log_softmax(const Tensor& hidden, const Tensor& head, const Tensor& targets, double temperature) {
  const char* const operation = "perLoopLogSoftmax";
  if (hidden.shape.size() != 3)
    throw Error("INVALID_SHAPE", operation, "hidden must be [T, N, D], got " + to_string(hidden.shape));
  if (head.shape.size() != 2 || head.shape[1] != hidden.shape[2])
    throw Error("INVALID_SHAPE", operation,
                "headWeight must be [V, " + std::to_string(hidden.shape[2]) + "], got " + to_string(head.shape));
  if (hidden.dtype == LOOP_I32) throw Error("INVALID_ARGUMENT", operation, "hidden must be a floating-point tensor, got int32");
  require_like(head, hidden, operation, "headWeight");
  const int64_t T = hidden.shape[0], N = hidden.shape[1], D = hidden.shape[2], V = head.shape[0], rows = T * N;
  require_shape(targets, {N}, operation, "targets");
  if (!(temperature > 0) || std::isinf(temperature))
    throw Error("INVALID_ARGUMENT", operation, "temperature must be a finite number above 0");
  read_indices(targets, V, operation);

  const std::shared_ptr<Device>& device = hidden.device;
  const LoopDType dt = hidden.dtype, real = loop_real(dt);
  const int64_t act_bytes = int64_t(loop_dtype_size(dt)), real_bytes = int64_t(loop_dtype_size(real));
  const Tensor every_target = broadcast(targets, {T, N}, operation);
  TokenScores out{allocate(device, real, {T, N}, operation), allocate(device, real, {T, N}, operation)};
  const int64_t chunk = std::clamp<int64_t>(device->logits_bytes() / (V * real_bytes), 1, rows);
  Buffer logits(device, size_t(chunk * V * real_bytes));
  const LoopLoss* no_loss = nullptr;
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t m = std::min(chunk, rows - first);
    const void* from = static_cast<char*>(hidden.data()) + first * D * act_bytes;
    device->run(&LoopBackend::gemm, operation, dt, 0, 1, m, V, D, from, D, head.data(), D, logits.as<>(), V,
                int(LOOP_GEMM_REAL_OUT));
    device->run(&LoopBackend::head_rows, operation, dt, m, V, temperature, logits.as<>(),
                static_cast<const int32_t*>(every_target.data()) + first, no_loss,
                static_cast<char*>(out.logprobs.data()) + first * real_bytes,
                static_cast<char*>(out.entropy.data()) + first * real_bytes);
  }
  return out;
}

PolicyGradient policy_gradient_reduction(const PolicyGradientTensors& in, LoopLoss loss) {
  const char* const operation = "policyGradientReduction";
  const Tensor& logprobs = in.logprobs;
  if (logprobs.shape.size() != 2)
    throw Error("INVALID_SHAPE", operation, "logprobs must be [T, N], got " + to_string(logprobs.shape));
  if (logprobs.dtype != LOOP_F32 && logprobs.dtype != LOOP_F64)
    throw Error("INVALID_ARGUMENT", operation, "logprobs must be float32, or float64 on device \"reference\"");
  const Shape per_token{logprobs.shape[1]};
  require_shape(in.weights, logprobs.shape, operation, "weights");
  require_shape(in.advantages, per_token, operation, "advantages");
  require_shape(in.mask, per_token, operation, "mask");
  if (in.old_logprobs) require_shape(*in.old_logprobs, logprobs.shape, operation, "oldLogprobs");
  for (const Tensor* x : {&in.weights, &in.advantages, &in.mask}) require_like(*x, logprobs, operation, "every input");
  if (in.old_logprobs) require_like(*in.old_logprobs, logprobs, operation, "oldLogprobs");
  if (loss.surrogate != LOOP_REINFORCE && !in.old_logprobs)
    throw Error("INVALID_ARGUMENT", operation, "this surrogate needs oldLogprobs");

  const Tensor scale = binary(LOOP_MULTIPLY, in.weights, in.mask);
  const Tensor advantages = broadcast(in.advantages, logprobs.shape, operation);
  PolicyGradient out{allocate(logprobs.device, logprobs.dtype, logprobs.shape, operation), {}};
  loss.scale = scale.data();
  loss.advantage = advantages.data();
  loss.old_logprob = loss.surrogate == LOOP_REINFORCE ? nullptr : in.old_logprobs->data();
  const LoopLoss* objective = &loss;
  logprobs.device->run(&LoopBackend::policy_gradient, operation, logprobs.dtype, logprobs.size(), logprobs.data(), objective,
                       out.coefficients.data(), &out.sums);
  return out;
}

}  // namespace looplm
