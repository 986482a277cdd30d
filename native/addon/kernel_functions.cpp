// The training kernels on tensors (src/kernels.ts).
#include "../engine/tensor_kernels.h"

#include "architecture_input.h"
#include "functions.h"
#include "tensor_functions.h"

namespace looplm::addon {

namespace {

using Slot = std::shared_ptr<TensorSlot>;

Napi::Value looped_block_forward_of(const Napi::CallbackInfo& info) {
  const HeldTensor hidden = read_tensor(Input(info, 0, "hidden"));
  const std::shared_ptr<Executor> executor = hidden.executor;
  const Architecture architecture = read_architecture(Input(info, 1, "architecture"));
  const Input list(info, 2, "weights"), words(info, 3, "names");
  std::vector<Slot> slots;
  std::vector<std::string> names;
  for (uint32_t i = 0; i < list.length(); i++) slots.push_back(read_tensor(list[i], executor).object);
  for (uint32_t i = 0; i < words.length(); i++) names.push_back(words[i].text());
  const std::vector<int32_t> offsets = Input(info, 4, "offsets").int32s();
  return executor->submit(
      info.Env(), nullptr, [executor, hidden = hidden.object, architecture, slots, names, offsets]() -> Executor::Finish {
        std::vector<Tensor> weights;
        for (const Slot& slot : slots) weights.push_back(slot->get());
        return [executor, out = looped_block_forward(hidden->get(), architecture, weights, names, offsets)](Napi::Env env) {
          Napi::Object object = Napi::Object::New(env);
          object.Set("hidden", make_tensor(env, executor, out.hidden));
          object.Set("gateLogits", make_tensor(env, executor, out.gate_logits));
          return object;
        };
      });
}

Napi::Value per_loop_log_softmax_of(const Napi::CallbackInfo& info) {
  const HeldTensor hidden = read_tensor(Input(info, 0, "hidden"));
  const std::shared_ptr<Executor> executor = hidden.executor;
  const Slot head = read_tensor(Input(info, 1, "headWeight"), executor).object,
             targets = read_tensor(Input(info, 2, "targets"), executor).object;
  const double temperature = Input(info, 3, "temperature").number();
  return executor->submit(
      info.Env(), nullptr, [executor, hidden = hidden.object, head, targets, temperature]() -> Executor::Finish {
        return [executor, out = per_loop_log_softmax(hidden->get(), head->get(), targets->get(), temperature)](Napi::Env env) {
          Napi::Object object = Napi::Object::New(env);
          object.Set("logprobs", make_tensor(env, executor, out.logprobs));
          object.Set("entropy", make_tensor(env, executor, out.entropy));
          return object;
        };
      });
}

Napi::Value policy_gradient_reduction_of(const Napi::CallbackInfo& info) {
  const HeldTensor logprobs = read_tensor(Input(info, 0, "logprobs"));
  const std::shared_ptr<Executor> executor = logprobs.executor;
  const Input inputs(info, 1, "inputs"), objective(info, 2, "objective");
  auto slot = [&](const char* name) { return read_tensor(inputs[name], executor).object; };
  const Slot weights = slot("weights"), advantages = slot("advantages"), mask = slot("mask");
  const Slot old = inputs["oldLogprobs"].missing() ? nullptr : slot("oldLogprobs");
  LoopLoss loss{};
  loss.surrogate =
      objective["surrogate"].word<LoopSurrogate>({{"reinforce", LOOP_REINFORCE}, {"ppo", LOOP_PPO}, {"cispo", LOOP_CISPO}});
  loss.epsilon_low = objective["epsilonLow"].number();
  loss.epsilon_high = objective["epsilonHigh"].number();
  loss.dual_clip = objective["dualClip"].number();
  loss.cap = objective["cap"].number();
  return executor->submit(info.Env(), nullptr, [=, logprobs = logprobs.object]() -> Executor::Finish {
    PolicyGradientTensors in{logprobs->get(), weights->get(), advantages->get(), mask->get(), std::nullopt};
    if (old) in.old_logprobs = old->get();
    return [executor, out = policy_gradient_reduction(in, loss)](Napi::Env env) {
      Napi::Object object = Napi::Object::New(env);
      object.Set("loss", out.sums.loss);
      object.Set("ratio", out.sums.ratio);
      object.Set("clippedLow", out.sums.clipped_low);
      object.Set("clippedHigh", out.sums.clipped_high);
      object.Set("rows", out.sums.rows);
      object.Set("coefficients", make_tensor(env, executor, out.coefficients));
      return object;
    };
  });
}

}  // namespace

void add_kernel_functions(Napi::Env env, Napi::Object exports) {
  add<looped_block_forward_of>(env, exports, "kernelLoopedBlockForward");
  add<per_loop_log_softmax_of>(env, exports, "kernelPerLoopLogSoftmax");
  add<policy_gradient_reduction_of>(env, exports, "kernelPolicyGradientReduction");
}

}  // namespace looplm::addon
