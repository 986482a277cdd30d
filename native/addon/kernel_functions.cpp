// The kernels on tensors (src/kernels.ts).
#include "../engine/tensor_kernels.h"

#include "functions.h"
#include "tensor_functions.h"

namespace looplm::addon {

namespace {

using Slot = std::shared_ptr<TensorSlot>;

Napi::Value looped_block_forward_of(const Napi::CallbackInfo& info) {
  const HeldTensor hidden = read_tensor(Input(info, 0, "hidden"));
  const std::shared_ptr<Executor> executor = hidden.executor;
  auto slot = [&](const Input& in) { return read_tensor(in, executor).object; };
  std::vector<std::vector<Slot>> layers;
  const Input layer_list(info, 1, "layers"), end(info, 2, "end"), in(info, 3, "options");
  for (uint32_t l = 0; l < layer_list.length(); l++) {
    layers.emplace_back();
    for (uint32_t i = 0; i < 11; i++) layers[l].push_back(slot(layer_list[l][i]));
  }
  const std::vector<Slot> last{slot(end[uint32_t(0)]), slot(end[1]), slot(end[2])};
  const int32_t heads = int32_t(in["heads"].integer(1, 1 << 16));
  const LoopedStackOptions options{int(in["loops"].integer(1, 1024)), in["offsets"].int32s(), in["ropeTheta"].number(),
                                   in["normEps"].number()};
  return executor->submit(
      info.Env(), nullptr, [executor, hidden = hidden.object, layers, last, heads, options]() -> Executor::Finish {
        LoopedStackTensors weights{{}, last[0]->get(), last[1]->get(), last[2]->get(), heads};
        for (const std::vector<Slot>& t : layers)
          weights.layers.push_back({t[0]->get(), t[1]->get(), t[2]->get(), t[3]->get(), t[4]->get(), t[5]->get(), t[6]->get(),
                                    t[7]->get(), t[8]->get(), t[9]->get(), t[10]->get()});
        return [executor, out = looped_block_forward(hidden->get(), weights, options)](Napi::Env env) {
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
