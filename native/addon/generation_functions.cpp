// Generation, a batch at a time or token by token.
#include "../engine/generate.h"

#include <optional>

#include "functions.h"
#include "input.h"
#include "output.h"

namespace looplm::addon {

namespace {

// The batch begins on the executor's thread, with the first step.
struct GenerationSlot {
  std::shared_ptr<Model> model;
  std::vector<std::vector<int32_t>> prompts;
  GenerateOptions options;
  std::optional<Generation> generation;
  std::vector<size_t> delivered;  // per sequence, tokens that earlier steps returned
  Generation& get() {
    if (!generation) generation.emplace(*model, prompts, options);
    return *generation;
  }
};

const char* finish_name(Finish finish) {
  switch (finish) {
    case Finish::none:
      return "none";
    case Finish::length:
      return "length";
    case Finish::stop:
      return "stop";
  }
  return "none";
}

GenerateOptions read_options(const Input& in) {
  constexpr int64_t INT_MAX_ = INT32_MAX;
  GenerateOptions o;
  o.max_new_tokens = int(in["maxNewTokens"].integer(1, INT_MAX_));
  o.temperature = in["temperature"].number();
  o.top_k = int(in["topK"].integer(0, INT_MAX_));
  o.top_p = in["topP"].number();
  o.min_p = in["minP"].number();
  o.seed = uint64_t(in["seed"].integer(0, int64_t(1) << 53));
  o.loops = int(in["loops"].integer(0, 1024));
  o.exit_threshold = in["exitThreshold"].number();
  o.shared_cache = in["sharedCache"].flag();
  o.stop_tokens = in["stopTokens"].int32s();
  return o;
}

Napi::Value create(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  const Sequences packed = Input(info, 1, "prompts").sequences();
  auto slot = std::make_shared<GenerationSlot>();
  slot->model = model.object;
  slot->options = read_options(Input(info, 2, "options"));
  for (size_t i = 0; i < packed.count(); i++)
    slot->prompts.emplace_back(packed.tokens.begin() + packed.offsets[i], packed.tokens.begin() + packed.offsets[i + 1]);
  slot->delivered.assign(slot->prompts.size(), 0);
  return make_handle(info.Env(), {Kind::generation, model.executor, slot});
}

struct Added {  // the new tokens of one sequence
  std::vector<int32_t> tokens, loops;
  Reals logprobs;
  Finish finish;
};

Napi::Value step(const Napi::CallbackInfo& info) {
  const auto slot = Input(info, 0, "generation").object<GenerationSlot>(Kind::generation);
  const int tokens = int(Input(info, 1, "tokens").integer(1, INT32_MAX));
  return slot.executor->submit(info.Env(), Input(info, 2, "cancel").cancel(), [slot = slot.object, tokens]() -> Executor::Finish {
    const bool more = slot->get().step(tokens);
    auto added = std::make_shared<std::vector<Added>>();
    const std::vector<Generated>& results = slot->get().results();
    for (size_t i = 0; i < results.size(); i++) {
      const Generated& g = results[i];
      const auto from = std::ptrdiff_t(slot->delivered[i]);
      added->push_back({{g.tokens.begin() + from, g.tokens.end()},
                        {g.loops.begin() + from, g.loops.end()},
                        Reals({g.logprobs.begin() + from, g.logprobs.end()}, slot->model->dt),
                        g.finish});
      slot->delivered[i] = g.tokens.size();
    }
    return [more, added](Napi::Env env) {
      Napi::Array array = Napi::Array::New(env, added->size());
      for (uint32_t i = 0; i < added->size(); i++) {
        const Added& a = (*added)[i];
        Napi::Object entry = Napi::Object::New(env);
        entry.Set("tokens", number_array(env, a.tokens));
        entry.Set("loops", number_array(env, a.loops));
        entry.Set("logprobs", a.logprobs.array(env));
        entry.Set("finish", finish_name(a.finish));
        array.Set(i, entry);
      }
      Napi::Object out = Napi::Object::New(env);
      out.Set("done", !more);
      out.Set("added", array);
      report_memory(env);
      return out;
    };
  });
}

Napi::Value finish(const Napi::CallbackInfo& info) {
  const auto slot = Input(info, 0, "generation").object<GenerationSlot>(Kind::generation);
  const Shape sequences = Input(info, 1, "sequences").integers();
  for (int64_t i : sequences)
    if (i < 0 || i >= int64_t(slot->prompts.size()))
      throw Error("INVALID_ARGUMENT", "looplm", "there is no sequence " + std::to_string(i));
  return slot.executor->submit(info.Env(), nullptr, [slot = slot.object, sequences]() -> Executor::Finish {
    for (int64_t i : sequences) slot->get().finish(size_t(i), 0);
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

}  // namespace

void add_generation_functions(Napi::Env env, Napi::Object exports) {
  add<create>(env, exports, "generationCreate");
  add<step>(env, exports, "generationStep");
  add<finish>(env, exports, "generationFinish");
}

}  // namespace looplm::addon
