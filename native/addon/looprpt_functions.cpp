// LoopRPT, Stage II, and the teacher's moving average.
#include "../engine/looprpt.h"
#include "../engine/moving_average.h"

#include <optional>

#include "functions.h"
#include "input.h"
#include "output.h"

namespace looplm::addon {

namespace {

LoopRptOptions read_options(const Input& in) {
  LoopRptOptions o;
  o.rho = in["rho"].number();
  o.tau = in["tau"].number();
  o.lambda_base = in["lambdaBase"].number();
  o.lambda_scale = in["lambdaScale"].number();
  o.policy = in["policyCoefficient"].number();
  o.representation = in["representationCoefficient"].number();
  o.entropy = in["entropyCoefficient"].number();
  o.kl = in["klCoefficient"].number();
  o.rollouts = int(in["rollouts"].integer(2, 1024));
  o.sigma = in["sigma"].number();
  o.noise_site = in["noiseSite"].word<NoiseSite>(
      {{"state", NoiseSite::state}, {"residual", NoiseSite::residual}, {"embedding", NoiseSite::embedding}});
  o.antithetic = in["antithetic"].flag();
  o.clean_rewards = in["rewardFrom"].word<bool>({{"rollout", false}, {"clean", true}});
  o.kl_reduction = in["klReduction"].word<KlReduction>(
      {{"mean", KlReduction::mean}, {"weighted", KlReduction::weighted}, {"last", KlReduction::last}});
  o.seed = uint64_t(in["seed"].integer(0, int64_t(1) << 53));
  o.recompute =
      in["recompute"].word<Recompute>({{"none", Recompute::none}, {"loop", Recompute::loop}, {"layer", Recompute::layer}});
  o.tokens_per_micro_batch = in["tokensPerMicroBatch"].integer(0, int64_t(1) << 40);
  return o;
}

Napi::Value accumulate_looprpt_of(const Napi::CallbackInfo& info) {
  const auto student = Input(info, 0, "student").object<Model>(Kind::model);
  const auto teacher = Input(info, 1, "teacher").object<Model>(Kind::model);
  if (teacher.executor != student.executor)
    Input(info, 1, "teacher").fail("must be on the device, and with the threads, of the student");
  auto batch = std::make_shared<LoopRptBatch>();
  batch->sequences = Input(info, 2, "sequences").sequences();
  const Input draws(info, 3, "draws");
  for (int32_t id : draws["ids"].int32s()) batch->ids.push_back(uint32_t(id));
  batch->responses = draws["responses"].int32s();
  batch->mask = draws["mask"].int32s();
  batch->noise = draws["noise"].doubles();
  batch->exits = draws["exits"].int32s();
  const LoopRptOptions options = read_options(Input(info, 4, "options"));
  return student.executor->submit(info.Env(), Input(info, 5, "cancel").cancel(),
                                  [student = student.object, teacher = teacher.object, batch, options]() -> Executor::Finish {
                                    const LoopRptMetrics m = accumulate_looprpt(*student, *teacher, *batch, options);
                                    return [m](Napi::Env env) {
                                      Napi::Object out = Napi::Object::New(env);
                                      out.Set("loss", m.loss);
                                      out.Set("policyLoss", m.policy_loss);
                                      out.Set("representationLoss", m.representation_loss);
                                      out.Set("entropyLoss", m.entropy_loss);
                                      out.Set("kl", m.kl);
                                      out.Set("reward", m.reward);
                                      out.Set("rewardStd", m.reward_std);
                                      out.Set("referenceLoop", m.reference_loop);
                                      out.Set("exitLoop", m.exit_loop);
                                      out.Set("meanLoop", m.mean_loop);
                                      out.Set("tokens", m.tokens);
                                      out.Set("loopLogprob", number_array(env, m.loop_logprob));
                                      out.Set("loopWeight", number_array(env, m.loop_weight));
                                      out.Set("loopExit", number_array(env, m.loop_exit));
                                      report_memory(env);
                                      return out;
                                    };
                                  });
}

Napi::Value accumulate_stage2_of(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  auto sequences = std::make_shared<Sequences>(Input(info, 1, "sequences").sequences());
  auto mask = std::make_shared<std::vector<int32_t>>(Input(info, 2, "mask").int32s());
  const double tokens = double(Input(info, 3, "tokens").integer(1, int64_t(1) << 53));
  const int64_t budget = Input(info, 4, "tokensPerMicroBatch").integer(0, int64_t(1) << 40);
  return model.executor->submit(info.Env(), Input(info, 5, "cancel").cancel(),
                                [model = model.object, sequences, mask, tokens, budget]() -> Executor::Finish {
                                  const double loss = accumulate_stage2(*model, *sequences, *mask, tokens, budget);
                                  return [loss](Napi::Env env) { return Napi::Number::New(env, loss); };
                                });
}

// Created on the executor's thread at the first call, because it allocates device memory.
struct AverageSlot {
  std::shared_ptr<Model> teacher, student;
  std::optional<MovingAverage> average;
  MovingAverage& get() {
    if (!average) average.emplace(teacher, student);
    return *average;
  }
};
Held<AverageSlot> read_average(const Napi::CallbackInfo& info) {
  return Input(info, 0, "average").object<AverageSlot>(Kind::average);
}

Napi::Value average_create(const Napi::CallbackInfo& info) {
  const auto teacher = Input(info, 0, "teacher").object<Model>(Kind::model);
  const auto student = Input(info, 1, "student").object<Model>(Kind::model);
  if (teacher.executor != student.executor)
    Input(info, 0, "teacher").fail("must be on the device, and with the threads, of the student");
  auto slot = std::make_shared<AverageSlot>(AverageSlot{teacher.object, student.object, std::nullopt});
  return make_handle(info.Env(), {Kind::average, student.executor, slot});
}

// Runs `work` on the average; returns a promise without a value.
template <class Work>
Napi::Value run_on_average(const Napi::CallbackInfo& info, Work work) {
  const auto slot = read_average(info);
  return slot.executor->submit(info.Env(), nullptr, [slot = slot.object, work]() -> Executor::Finish {
    work(slot->get());
    return [](Napi::Env env) { return env.Undefined(); };
  });
}
Napi::Value update(const Napi::CallbackInfo& info) {
  const double decay = Input(info, 1, "decay").number();
  return run_on_average(info, [decay](MovingAverage& average) { average.update(decay); });
}
Napi::Value average_save(const Napi::CallbackInfo& info) {
  const std::string path = Input(info, 1, "path").text();
  return run_on_average(info, [path](MovingAverage& average) { average.save(path); });
}
Napi::Value average_load(const Napi::CallbackInfo& info) {
  const std::string path = Input(info, 1, "path").text();
  return run_on_average(info, [path](MovingAverage& average) { average.load(path); });
}

}  // namespace

void add_looprpt_functions(Napi::Env env, Napi::Object exports) {
  add<accumulate_looprpt_of>(env, exports, "modelAccumulateLoopRpt");
  add<accumulate_stage2_of>(env, exports, "modelAccumulateStage2");
  add<average_create>(env, exports, "averageCreate");
  add<update>(env, exports, "averageUpdate");
  add<average_save>(env, exports, "averageSave");
  add<average_load>(env, exports, "averageLoad");
}

}  // namespace looplm::addon
