// AdamW on a model.
#include "../engine/optimizer.h"

#include <optional>

#include "functions.h"
#include "input.h"

namespace looplm::addon {

namespace {

// Created on the executor's thread at the first call, because it allocates device memory.
struct OptimizerSlot {
  std::shared_ptr<Model> model;
  std::shared_ptr<Communicator> world;  // NULL: this process trains alone
  std::optional<AdamW> optimizer;
  AdamW& get() {
    if (!optimizer) optimizer.emplace(model, world);
    return *optimizer;
  }
};

Held<OptimizerSlot> read_optimizer(const Napi::CallbackInfo& info) {
  return Input(info, 0, "optimizer").object<OptimizerSlot>(Kind::optimizer);
}

Napi::Value optimizer_create(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  const Input given(info, 1, "world");
  const auto world = given.missing() ? nullptr : given.object<Communicator>(Kind::world).object;
  auto slot = std::make_shared<OptimizerSlot>(OptimizerSlot{model.object, world, std::nullopt});
  return make_handle(info.Env(), {Kind::optimizer, model.executor, std::move(slot)});
}

Napi::Value step(const Napi::CallbackInfo& info) {
  const auto slot = read_optimizer(info);
  const Input in(info, 1, "options");
  AdamWOptions options;
  options.learning_rate = in["learningRate"].number();
  options.beta1 = in["beta1"].number();
  options.beta2 = in["beta2"].number();
  options.epsilon = in["epsilon"].number();
  options.weight_decay = in["weightDecay"].number();
  options.max_grad_norm = in["maxGradNorm"].number();
  options.failed = in["failed"].flag();
  const Input only = in["only"];
  for (uint32_t i = 0; i < only.length(); i++) options.only.push_back(only[i].text());
  return slot.executor->submit(info.Env(), nullptr, [slot = slot.object, options]() -> Executor::Finish {
    const double norm = slot->get().step(options);
    const DataParallel* parallel = slot->get().parallel();
    const auto times = parallel ? parallel->times() : DataParallel::Times{};
    const std::string over = parallel ? parallel->over() : "";
    return [norm, times, over, steps = slot->get().steps()](Napi::Env env) {
      Napi::Object out = Napi::Object::New(env);
      out.Set("gradNorm", norm);
      out.Set("steps", double(steps));
      out.Set("exchanging", times.exchanging);
      out.Set("waiting", times.waiting);
      out.Set("over", over);
      report_memory(env);
      return out;
    };
  });
}

// Does nothing if there is only one rank.
Napi::Value exchange_during_next(const Napi::CallbackInfo& info) {
  const auto slot = read_optimizer(info);
  return slot.executor->submit(info.Env(), nullptr, [slot = slot.object]() -> Executor::Finish {
    if (DataParallel* parallel = slot->get().parallel()) parallel->exchange_during_next();
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

Napi::Value optimizer_save(const Napi::CallbackInfo& info) {
  const auto slot = read_optimizer(info);
  const std::string path = Input(info, 1, "path").text();
  return slot.executor->submit(info.Env(), nullptr, [slot = slot.object, path]() -> Executor::Finish {
    slot->get().save(path);
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

Napi::Value optimizer_load(const Napi::CallbackInfo& info) {
  const auto slot = read_optimizer(info);
  const Input list(info, 1, "paths");
  std::vector<std::string> paths;
  for (uint32_t i = 0; i < list.length(); i++) paths.push_back(list[i].text());
  return slot.executor->submit(info.Env(), nullptr, [slot = slot.object, paths]() -> Executor::Finish {
    slot->get().load(paths);
    return [steps = slot->get().steps()](Napi::Env env) {
      report_memory(env);
      return Napi::Number::New(env, double(steps));
    };
  });
}

}  // namespace

void add_optimizer_functions(Napi::Env env, Napi::Object exports) {
  add<optimizer_create>(env, exports, "optimizerCreate");
  add<step>(env, exports, "optimizerStep");
  add<exchange_during_next>(env, exports, "optimizerExchangeDuringNext");
  add<optimizer_save>(env, exports, "optimizerSave");
  add<optimizer_load>(env, exports, "optimizerLoad");
}

}  // namespace looplm::addon
