// Generation: requests, and the runs that serve them.
#include "../engine/generation/scheduler.h"

#include <cmath>

#include "functions.h"
#include "input.h"
#include "output.h"

namespace looplm::addon {

namespace {

using HeldScheduler = Held<Scheduler>;

HeldScheduler read_scheduler(const Napi::CallbackInfo& info) {
  return Input(info, 0, "scheduler").object<Scheduler>(Kind::scheduler);
}

const char* finish_name(Finish finish) {
  switch (finish) {
    case Finish::none:
      return "none";
    case Finish::length:
      return "length";
    case Finish::stop:
      return "stop";
    case Finish::failed:
      return "failed";
  }
  return "none";
}

constexpr int64_t MOST = INT32_MAX;

LogitOptions::Host read_host(const std::string& name) {
  return name == "mask" ? LogitOptions::Host::mask : name == "logits" ? LogitOptions::Host::logits : LogitOptions::Host::none;
}

LogitOptions read_logit_options(const Input& in) {
  LogitOptions o;
  const std::vector<int32_t> tokens = in["biasTokens"].int32s(), banned = in["bannedTokens"].int32s();
  const std::vector<double> values = in["biases"].doubles();
  if (tokens.size() != values.size()) throw Error("INVALID_ARGUMENT", "generate", "biases must have one value per biased token");
  for (size_t i = 0; i < tokens.size(); i++) o.biases.emplace_back(tokens[i], values[i]);
  for (int32_t token : banned) o.biases.emplace_back(token, -INFINITY);
  o.repetition = in["repetitionPenalty"].number();
  o.frequency = in["frequencyPenalty"].number();
  o.presence = in["presencePenalty"].number();
  o.host = read_host(in["host"].text());
  return o;
}

GenerateRequest read_request(const Input& in) {
  GenerateRequest r;
  r.prompt = in["prompt"].int32s();
  r.max_new_tokens = int(in["maxNewTokens"].integer(1, MOST));
  r.sampling.temperature = in["temperature"].number();
  r.sampling.top_k = int(in["topK"].integer(0, MOST));
  r.sampling.top_p = in["topP"].number();
  r.sampling.min_p = in["minP"].number();
  r.sampling.seed = uint64_t(in["seed"].integer(0, int64_t(1) << 53));
  r.logits = read_logit_options(in);
  r.exit.rule = exit_rule_named(in["rule"].text());
  r.exit.threshold = in["threshold"].number();
  r.exit.min_loops = int(in["minLoops"].integer(1, 1024));
  r.exit.patience = int(in["patience"].integer(1, 1024));
  r.exit.max_loops = int(in["loops"].integer(0, 1024));
  r.stop_tokens = in["stopTokens"].int32s();
  r.sequence = int32_t(in["sequence"].integer(0, MOST));
  r.alternatives = int(in["alternatives"].integer(0, MOST));
  r.draft_loops = int(in["draftLoops"].integer(0, 1024));
  r.draft_tokens = int(in["draftTokens"].integer(0, MOST));
  r.wavefront = in["wavefront"].flag();
  r.keep = in["keep"].flag();
  r.parent = in["parent"].integer(0, int64_t(1) << 53);
  r.prefix = in["prefix"].integer(0, MOST);
  r.release_parent = in["releaseParent"].flag();
  r.vectors = in["vectors"].vectors();
  r.states.given = in["states"].doubles();
  r.states.seed = uint64_t(in["stateSeed"].integer(0, int64_t(1) << 53));
  r.states.zeros = in["zeroStates"].flag();
  return r;
}

Napi::Value scheduler_create(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  const Input in(info, 1, "options");
  SchedulerOptions o;
  o.max_rows = int(in["maxRows"].integer(1, MOST));
  o.max_tokens = in["maxTokens"].integer(0, MOST);
  o.loops = int(in["loops"].integer(0, 1024));
  o.shared_cache = in["sharedCache"].flag();
  o.force = in["force"].flag();
  o.cache_bits = int(in["cacheBits"].integer(0, 8));
  o.residual_bits = int(in["residualBits"].integer(0, 2));
  o.pruned_keys = in["prunedKeys"].flag();
  o.prompt_cache = in["promptCache"].integer(-1, MOST);
  o.prefill_tokens = in["prefillTokens"].integer(1, MOST);
  return make_handle(info.Env(), {Kind::scheduler, model.executor, std::make_shared<Scheduler>(model.object, o)});
}

Napi::Value add_request(const Napi::CallbackInfo& info) {
  const HeldScheduler scheduler = read_scheduler(info);
  return Napi::Number::New(info.Env(), double(scheduler->add(read_request(Input(info, 1, "request")))));
}

Napi::Value scheduler_cancel(const Napi::CallbackInfo& info) {
  const HeldScheduler scheduler = read_scheduler(info);
  scheduler->cancel(Input(info, 1, "request").integer(1, int64_t(1) << 53), Input(info, 2, "keep").flag());
  return info.Env().Undefined();
}

// The host's answer: the words of a token mask, or replacement logits.
Napi::Value scheduler_answer(const Napi::CallbackInfo& info) {
  const HeldScheduler scheduler = read_scheduler(info);
  scheduler->answer(Input(info, 1, "request").integer(1, int64_t(1) << 53),
                    {Input(info, 2, "allowed").int32s(), Input(info, 3, "logits").doubles()});
  return info.Env().Undefined();
}

Napi::Object event_object(Napi::Env env, const GenerateEvent& event, LoopDType dtype) {
  std::vector<int32_t> tokens, loops;
  std::vector<double> logprobs;
  Napi::Array alternatives = Napi::Array::New(env);
  for (const GeneratedToken& t : event.tokens) {
    tokens.push_back(t.token);
    loops.push_back(t.loop);
    logprobs.push_back(t.logprob);
    if (t.alternatives.empty()) continue;
    Napi::Array list = Napi::Array::New(env, t.alternatives.size());
    for (uint32_t k = 0; k < t.alternatives.size(); k++) {
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("token", t.alternatives[k].first);
      entry.Set("logprob", t.alternatives[k].second);
      list.Set(k, entry);
    }
    alternatives.Set(uint32_t(tokens.size() - 1), list);
  }
  Napi::Object out = Napi::Object::New(env);
  out.Set("request", double(event.request));
  out.Set("tokens", number_array(env, tokens));
  out.Set("loops", number_array(env, loops));
  out.Set("logprobs", Reals(std::move(logprobs), dtype).array(env));
  out.Set("alternatives", alternatives);
  out.Set("finish", finish_name(event.finish));
  out.Set("failure", event.failure);
  out.Set("reused", double(event.reused));
  if (!event.logits.empty()) out.Set("logits", Reals(std::vector<double>(event.logits), dtype).array(env));
  return out;
}

Napi::Value scheduler_run(const Napi::CallbackInfo& info) {
  const HeldScheduler scheduler = read_scheduler(info);
  const std::string name = Input(info, 1, "until").text();
  const Until until = name == "token" ? Until::token : name == "finish" ? Until::finish : Until::idle;
  return scheduler.executor->submit(info.Env(), Input(info, 2, "cancel").cancel(),
                                    [scheduler = scheduler.object, until]() -> Executor::Finish {
                                      auto events = std::make_shared<std::vector<GenerateEvent>>(scheduler->run(until));
                                      return [dtype = scheduler->dtype(), events](Napi::Env env) {
                                        Napi::Array array = Napi::Array::New(env, events->size());
                                        for (uint32_t i = 0; i < events->size(); i++)
                                          array.Set(i, event_object(env, (*events)[i], dtype));
                                        report_memory(env);
                                        return array;
                                      };
                                    });
}

Napi::Value stats(const Napi::CallbackInfo& info) {
  const SchedulerStats s = read_scheduler(info)->stats();
  Napi::Object out = Napi::Object::New(info.Env());
  auto set = [&](const char* name, int64_t value) { out.Set(name, double(value)); };
  set("rows", s.rows);
  set("waiting", s.waiting);
  set("cachedTokens", s.cached_tokens);
  set("slots", s.slots);
  set("passes", s.passes);
  set("passRows", s.pass_rows);
  set("replayedPasses", s.replayed_passes);
  set("wholeTokens", s.whole_tokens);
  set("kept", s.kept);
  set("evicted", s.evicted);
  set("restarted", s.restarted);
  set("prefilled", s.prefilled);
  set("reused", s.reused);
  set("hits", s.hits);
  set("retained", s.retained);
  set("drafted", s.drafted);
  set("accepted", s.accepted);
  return out;
}

}  // namespace

void add_generation_functions(Napi::Env env, Napi::Object exports) {
  add<scheduler_create>(env, exports, "schedulerCreate");
  add<add_request>(env, exports, "schedulerAdd");
  add<scheduler_answer>(env, exports, "schedulerAnswer");
  add<scheduler_cancel>(env, exports, "schedulerCancel");
  add<scheduler_run>(env, exports, "schedulerRun");
  add<stats>(env, exports, "schedulerStats");
}

}  // namespace looplm::addon
