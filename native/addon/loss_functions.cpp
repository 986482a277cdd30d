// Scores, gradients of given coefficients, and the trainers' loss core.
#include "../engine/loss.h"

#include "functions.h"
#include "input.h"
#include "output.h"

namespace looplm::addon {

namespace {

constexpr int64_t MAX_LOOPS = 1024;

Recompute read_recompute(const Input& in) {
  return in.word<Recompute>({{"none", Recompute::none}, {"loop", Recompute::loop}, {"layer", Recompute::layer}});
}

void check_vocabulary(const Sequences& sequences, const Model& model) {
  for (int32_t token : sequences.tokens)
    if (token < 0 || token >= model.config.vocabulary)
      throw Error(
          "INVALID_ARGUMENT", "looplm",
          "token id " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(model.config.vocabulary));
  for (size_t i = 0; i < sequences.count(); i++)
    if (sequences.length(i) < 2)
      throw Error("INVALID_ARGUMENT", "looplm", "sequence " + std::to_string(i) + " has fewer than two tokens");
  if (sequences.count() == 0) throw Error("INVALID_ARGUMENT", "looplm", "there are no sequences");
}

// One typed array per sequence, of rows × (length - drop) numbers.
Napi::Value split(Napi::Env env, const Reals& values, const std::vector<int64_t>& lengths, int64_t rows, int64_t drop) {
  Napi::Array array = Napi::Array::New(env, lengths.size());
  size_t begin = 0;
  for (uint32_t i = 0; i < lengths.size(); i++) {
    const size_t count = size_t(rows * (lengths[i] - drop));
    array.Set(i, values.array(env, begin, count));
    begin += count;
  }
  return array;
}

Napi::Value score_of(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  auto sequences = std::make_shared<Sequences>(Input(info, 1, "sequences").sequences());
  check_vocabulary(*sequences, *model);
  const Input in(info, 2, "options");
  ScoreOptions options;
  options.temperature = in["temperature"].number();
  options.loops = int(in["loops"].integer(0, MAX_LOOPS));
  options.last_loop = in["lastLoop"].flag();
  options.responses_only = in["responsesOnly"].flag();
  return model.executor->submit(info.Env(), Input(info, 3, "cancel").cancel(),
                                [model = model.object, sequences, options]() -> Executor::Finish {
                                  struct Result {
                                    int64_t loops;
                                    bool last_loop;
                                    std::vector<int64_t> lengths;
                                    Reals logprobs, entropy, gate_logits, exit_pdf;
                                  };
                                  Scores scores = score(*model, *sequences, options);
                                  auto r = std::make_shared<Result>();
                                  r->loops = scores.loops;
                                  r->last_loop = options.last_loop;
                                  for (size_t i = 0; i < sequences->count(); i++) r->lengths.push_back(sequences->length(i));
                                  r->logprobs = Reals(std::move(scores.logprobs), model->dt);
                                  r->entropy = Reals(std::move(scores.entropy), model->dt);
                                  r->gate_logits = Reals(std::move(scores.gate_logits), model->dt);
                                  r->exit_pdf = Reals(std::move(scores.exit_pdf), model->dt);
                                  return [r](Napi::Env env) {
                                    const int64_t scored = r->last_loop ? 1 : r->loops;
                                    Napi::Object out = Napi::Object::New(env);
                                    out.Set("loops", double(r->loops));
                                    out.Set("logprobs", split(env, r->logprobs, r->lengths, scored, 1));
                                    out.Set("entropy", split(env, r->entropy, r->lengths, scored, 1));
                                    out.Set("gateLogits", split(env, r->gate_logits, r->lengths, r->loops, 0));
                                    out.Set("exitPdf", split(env, r->exit_pdf, r->lengths, r->loops, 0));
                                    report_memory(env);
                                    return out;
                                  };
                                });
}

Napi::Value backward_of(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  auto sequences = std::make_shared<Sequences>(Input(info, 1, "sequences").sequences());
  check_vocabulary(*sequences, *model);
  auto coefficients = std::make_shared<std::vector<double>>(Input(info, 2, "coefficients").doubles());
  auto gates = std::make_shared<std::vector<double>>(Input(info, 3, "gateCoefficients").doubles());
  const Input in(info, 4, "options");
  ScoreOptions options;
  options.temperature = in["temperature"].number();
  options.loops = int(in["loops"].integer(0, MAX_LOOPS));
  const Recompute recompute = read_recompute(in["recompute"]);
  const size_t loops = size_t(options.loops ? options.loops : model->config.loops), tokens = sequences->tokens.size();
  if (coefficients->size() != loops * (tokens - sequences->count()) || (!gates->empty() && gates->size() != loops * tokens))
    throw Error("INVALID_SHAPE", "looplm",
                "coefficients must be loops × (length - 1) and gateCoefficients loops × length per sequence");
  return model.executor->submit(info.Env(), Input(info, 5, "cancel").cancel(),
                                [model = model.object, sequences, coefficients, gates, options, recompute]() -> Executor::Finish {
                                  backward(*model, *sequences, *coefficients, *gates, options, recompute);
                                  return [](Napi::Env env) {
                                    report_memory(env);
                                    return env.Undefined();
                                  };
                                });
}

Objective read_objective(const Input& in) {
  Objective o;
  o.weights = in["weights"].word<LoopCredit>({{"exit-pdf", LoopCredit::exit_pdf},
                                              {"uniform", LoopCredit::uniform},
                                              {"progressive", LoopCredit::progressive},
                                              {"last", LoopCredit::last}});
  o.alpha = in["alpha"].number();
  o.detach_weights = in["detachWeights"].flag();
  o.surrogate = in["surrogate"].word<LoopSurrogate>({{"reinforce", LOOP_REINFORCE}, {"ppo", LOOP_PPO}, {"cispo", LOOP_CISPO}});
  o.epsilon_low = in["epsilonLow"].number();
  o.epsilon_high = in["epsilonHigh"].number();
  o.dual_clip = in["dualClip"].number();
  o.cap = in["cap"].number();
  o.beta = in["beta"].number();
  o.exit_entropy = in["exitEntropy"].number();
  o.temperature = in["temperature"].number();
  o.loops = int(in["loops"].integer(0, MAX_LOOPS));
  o.recompute = read_recompute(in["recompute"]);
  o.tokens_per_micro_batch = in["tokensPerMicroBatch"].integer(0, int64_t(1) << 40);
  o.share_prompts = in["sharePrompts"].flag();
  return o;
}

Napi::Value metrics_object(Napi::Env env, const LossMetrics& m) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("loss", m.loss);
  out.Set("policyLoss", m.policy_loss);
  out.Set("kl", m.kl);
  out.Set("entropy", m.entropy);
  out.Set("ratio", m.ratio);
  out.Set("clipLow", m.clip_low);
  out.Set("clipHigh", m.clip_high);
  out.Set("responseTokens", m.response_tokens);
  out.Set("exitLoop", m.exit_loop);
  out.Set("exitEntropy", m.exit_entropy);
  out.Set("loopLogprob", number_array(env, m.loop_logprob));
  out.Set("loopWeight", number_array(env, m.loop_weight));
  out.Set("loopExit", number_array(env, m.loop_exit));
  return out;
}

Napi::Value accumulate_loss_of(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  auto batch = std::make_shared<LossBatch>();
  batch->sequences = Input(info, 1, "sequences").sequences();
  check_vocabulary(batch->sequences, *model);
  const Input values(info, 2, "values");
  batch->advantages = values["advantages"].doubles();
  batch->norms = values["norms"].doubles();
  batch->old_logprobs = values["oldLogprobs"].doubles();
  batch->reference_logprobs = values["referenceLogprobs"].doubles();
  const Objective objective = read_objective(Input(info, 3, "objective"));
  const size_t count = batch->sequences.count(), predictions = batch->sequences.tokens.size() - count;
  const size_t loops = size_t(objective.loops ? objective.loops : model->config.loops);
  auto fits = [&](const std::vector<double>& v) {
    return v.empty() || v.size() == predictions || v.size() == loops * predictions;
  };
  if (batch->advantages.size() != count || batch->norms.size() != count)
    throw Error("INVALID_SHAPE", "looplm", "advantages and norms must have one entry per sequence");
  if (!fits(batch->old_logprobs) || !fits(batch->reference_logprobs))
    throw Error("INVALID_SHAPE", "looplm",
                "oldLogprobs and referenceLogprobs must be (length - 1) or loops × (length - 1) per sequence");
  return model.executor->submit(info.Env(), Input(info, 4, "cancel").cancel(),
                                [model = model.object, batch, objective]() -> Executor::Finish {
                                  return [metrics = accumulate_loss(*model, *batch, objective)](Napi::Env env) {
                                    report_memory(env);
                                    return metrics_object(env, metrics);
                                  };
                                });
}

}  // namespace

void add_loss_functions(Napi::Env env, Napi::Object exports) {
  add<score_of>(env, exports, "modelScore");
  add<backward_of>(env, exports, "modelBackward");
  add<accumulate_loss_of>(env, exports, "modelAccumulateLoss");
}

}  // namespace looplm::addon
