// Scores, gradients of given coefficients, and the losses of the trainers.
#include "../engine/loss.h"
#include "../engine/pass.h"  // defines: default_budget
#include "../engine/score.h"
#include "../engine/segments.h"

#include "architecture_input.h"
#include "functions.h"
#include "input.h"
#include "output.h"

namespace looplm::addon {

namespace {

constexpr int64_t MAX_LOOPS = 1024;

Recompute read_recompute(const Input& in) {
  return in.word<Recompute>({{"none", Recompute::none}, {"loop", Recompute::loop}, {"layer", Recompute::layer}});
}

LoopOptions read_loops(const Input& in) {
  LoopOptions o;
  o.run = int(in["loops"].integer(0, MAX_LOOPS));
  if (const Input read = in["readLoops"]; !read.missing()) o.read = read.int32s();
  if (const Input backward = in["backwardLoops"]; !backward.missing()) o.backward = int(backward.integer(0, MAX_LOOPS));
  if (const Input constant = in["constantSteps"]; !constant.missing()) o.constant_steps = constant.int32s();
  return o;
}

// The options that all scoring functions share.
ScoreOptions read_score_options(const Input& in) {
  ScoreOptions options;
  options.temperature = in["temperature"].number();
  options.loops = read_loops(in);
  return options;
}

void check_vocabulary(const Sequences& sequences, const Model& model, int64_t shortest = 2) {
  for (int32_t token : sequences.tokens)
    if (token < 0 || token >= model.config.vocabulary)
      throw Error(
          "INVALID_ARGUMENT", "looplm",
          "token id " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(model.config.vocabulary));
  for (size_t i = 0; i < sequences.count(); i++)
    if (sequences.length(i) < shortest)
      throw Error("INVALID_ARGUMENT", "looplm",
                  "sequence " + std::to_string(i) + " has fewer tokens than " + std::to_string(shortest));
  if (sequences.count() == 0) throw Error("INVALID_ARGUMENT", "looplm", "there are no sequences");
}

// Reads the second argument of a call as sequences for the model in the first one.
std::shared_ptr<Sequences> read_sequences(const Napi::CallbackInfo& info, const Model& model, int64_t shortest = 2) {
  auto sequences = std::make_shared<Sequences>(Input(info, 1, "sequences").sequences());
  check_vocabulary(*sequences, model, shortest);
  return sequences;
}

// Splits values into one typed array per sequence with rows × (length - drop) elements.
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
  const auto sequences = read_sequences(info, *model);
  const Input in(info, 2, "options");
  ScoreOptions options = read_score_options(in);
  options.last_loop = in["lastLoop"].flag();
  options.responses_only = in["responsesOnly"].flag();
  options.predictions = in["predictions"].flag();
  options.top = int(in["top"].integer(0, model->config.vocabulary));
  return model.executor->submit(info.Env(), Input(info, 3, "cancel").cancel(),
                                [model = model.object, sequences, options]() -> Executor::Finish {
                                  struct Result {
                                    int64_t loops, reads;
                                    bool last_loop;
                                    std::vector<int64_t> lengths;
                                    Reals logprobs, entropy, gate_logits, exit_pdf, predicted;
                                    std::vector<int32_t> top_tokens;
                                    std::vector<double> top_logprobs;
                                  };
                                  Scores scores = score(*model, *sequences, options);
                                  auto r = std::make_shared<Result>();
                                  r->loops = scores.loops;
                                  r->reads = scores.reads;
                                  r->last_loop = options.last_loop;
                                  for (size_t i = 0; i < sequences->count(); i++) r->lengths.push_back(sequences->length(i));
                                  r->logprobs = Reals(std::move(scores.logprobs), model->dt);
                                  r->entropy = Reals(std::move(scores.entropy), model->dt);
                                  r->gate_logits = Reals(std::move(scores.gate_logits), model->dt);
                                  r->exit_pdf = Reals(std::move(scores.exit_pdf), model->dt);
                                  r->top_tokens = std::move(scores.top_tokens);
                                  r->top_logprobs = std::move(scores.top_logprobs);
                                  // float64, so that token ids are exact
                                  r->predicted = Reals(std::move(scores.predicted), LOOP_F64);
                                  return [r](Napi::Env env) {
                                    const int64_t scored = r->last_loop ? 1 : r->reads;
                                    Napi::Object out = Napi::Object::New(env);
                                    out.Set("loops", double(r->loops));
                                    out.Set("logprobs", split(env, r->logprobs, r->lengths, scored, 1));
                                    if (r->predicted.size() > 0)
                                      out.Set("predicted", split(env, r->predicted, r->lengths, scored, 1));
                                    if (!r->top_tokens.empty()) {
                                      const size_t n = r->top_tokens.size();
                                      out.Set("topTokens", typed_array<Napi::Int32Array>(env, r->top_tokens.data(), n));
                                      out.Set("topLogprobs", typed_array<Napi::Float64Array>(env, r->top_logprobs.data(), n));
                                    }
                                    out.Set("entropy", split(env, r->entropy, r->lengths, scored, 1));
                                    const bool gates = r->gate_logits.size() > 0;
                                    out.Set("gateLogits", split(env, r->gate_logits, r->lengths, gates ? r->reads : 0, 0));
                                    out.Set("exitPdf", split(env, r->exit_pdf, r->lengths, r->reads, 0));
                                    report_memory(env);
                                    return out;
                                  };
                                });
}

Napi::Value backward_of(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  const auto sequences = read_sequences(info, *model);
  auto coefficients = std::make_shared<std::vector<double>>(Input(info, 2, "coefficients").doubles());
  auto gates = std::make_shared<std::vector<double>>(Input(info, 3, "gateCoefficients").doubles());
  const Input in(info, 4, "options");
  const ScoreOptions options = read_score_options(in);
  const Recompute recompute = read_recompute(in["recompute"]);
  const size_t run = size_t(options.loops.run ? options.loops.run : model->config.loops), tokens = sequences->tokens.size();
  const size_t loops = options.loops.read.empty() ? run : options.loops.read.size();
  if (coefficients->size() != loops * (tokens - sequences->count()) || (!gates->empty() && gates->size() != loops * tokens))
    throw Error("INVALID_SHAPE", "looplm",
                "coefficients must be loops × (length - 1) and gateCoefficients loops × length per sequence");
  return model.executor->submit(info.Env(), Input(info, 5, "cancel").cancel(),
                                [model = model.object, sequences, coefficients, gates, options, recompute]() -> Executor::Finish {
                                  auto vectors = std::make_shared<Reals>(
                                      backward(*model, *sequences, *coefficients, *gates, options, recompute), model->dt);
                                  return [vectors](Napi::Env env) {
                                    report_memory(env);
                                    return vectors->array(env);
                                  };
                                });
}

LoopSet read_loop_set(const Input& in) {
  return in.word<LoopSet>({{"last", LoopSet::last}, {"uniform", LoopSet::uniform}, {"weights", LoopSet::weights}});
}

BeliefRewards read_belief(const Input& in) {
  BeliefRewards b;
  b.value = in["value"].word<BeliefValue>(
      {{"probability", BeliefValue::probability}, {"log", BeliefValue::log}, {"best-of", BeliefValue::best_of}});
  b.attempts = in["attempts"].number();
  b.base = in["base"].word<BeliefBase>(
      {{"none", BeliefBase::none}, {"previous", BeliefBase::previous}, {"teacher", BeliefBase::teacher}});
  b.cost = in["cost"].number();
  b.clip = !in["clip"].missing();
  if (b.clip) b.clip_at = in["clip"].number();
  b.delta = in["delta"].flag();
  b.discount = in["discount"].number();
  return b;
}

LossTerm read_term(const Input& in, const Input& values) {
  LossTerm t;
  t.channel = in["channel"].word<Channel>({{"token", Channel::token}, {"exit", Channel::exit}});
  const Input weights = in["weights"];
  t.weights.kind = weights["kind"].word<LoopWeighting>({{"exit-pdf", LoopWeighting::exit_pdf},
                                                        {"uniform", LoopWeighting::uniform},
                                                        {"progressive", LoopWeighting::progressive},
                                                        {"one-hot", LoopWeighting::one_hot},
                                                        {"given", LoopWeighting::given},
                                                        {"exit-loop", LoopWeighting::exit_loop}});
  if (const Input given = weights["weights"]; !given.missing()) t.weights.given = given.doubles();
  t.weights.temperature = weights["temperature"].number();
  t.weights.alpha = weights["alpha"].number();
  t.weights.loop = int(weights["loop"].integer(0, MAX_LOOPS));
  t.weights.detach = weights["detach"].flag();
  t.surrogate = in["surrogate"].word<Surrogate>({{"reinforce", Surrogate::reinforce},
                                                 {"ppo", Surrogate::ppo},
                                                 {"cispo", Surrogate::cispo},
                                                 {"gspo", Surrogate::gspo},
                                                 {"k15", Surrogate::k15}});
  t.inner = in["inner"].flag();
  t.epsilon_low = in["epsilonLow"].number();
  t.epsilon_high = in["epsilonHigh"].number();
  t.dual_clip = in["dualClip"].number();
  t.cap = in["cap"].number();
  t.tau = in["tau"].number();
  if (const Input belief = in["belief"]; !belief.missing()) {
    t.belief = read_belief(belief);
    t.belief_norm = belief["normalize"].word<BeliefNorm>(
        {{"none", BeliefNorm::none}, {"loops", BeliefNorm::loops}, {"gain", BeliefNorm::gain}});
    t.belief_scale = belief["scale"].number();
    t.reference_threshold = belief["threshold"].number();
    t.cost_scale = belief["costScale"].number();
  }
  t.draws = int(in["draws"].integer(0, 1024));
  t.seed = uint64_t(in["seed"].integer(0, int64_t(1) << 53));
  t.advantages = values["advantages"].doubles();
  t.token_advantages = values["tokenAdvantages"].doubles();
  t.length_normalizers = values["lengthNormalizers"].doubles();
  return t;
}

Objective read_objective(const Input& in, const Input& values) {
  Objective o;
  const Input terms = in["terms"];
  for (uint32_t i = 0; i < terms.length(); i++) o.terms.push_back(read_term(terms[i], values["terms"][i]));
  o.beta = in["beta"].number();
  o.beta_loops = read_loop_set(in["betaLoops"]);
  o.token_entropy = in["tokenEntropy"].number();
  o.exit_entropy = in["exitEntropy"].number();
  if (const Input lazy = in["lazy"]; !lazy.missing()) {
    using Gate = LazyLikelihood::Gate;
    o.lazy = LazyLikelihood{
        lazy["gate"].word<Gate>(
            {{"token", Gate::token}, {"segment", Gate::segment}, {"response", Gate::response}, {"loop", Gate::loop}}),
        read_loop_set(lazy["loops"]), values["lazyNormalizers"].doubles()};
  }
  o.temperature = in["temperature"].number();
  o.loops = read_loops(in);
  o.recompute = read_recompute(in["recompute"]);
  o.tokens_per_micro_batch = in["tokensPerMicroBatch"].integer(0, int64_t(1) << 40);
  o.share_prompts = in["sharePrompts"].flag();
  return o;
}

Napi::Value metrics_object(Napi::Env env, const LossMetrics& m, LoopDType dtype) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("loss", m.loss);
  out.Set("policyLoss", m.policy_loss);
  out.Set("kl", m.kl);
  out.Set("lazyLoss", m.lazy_loss);
  out.Set("entropy", m.entropy);
  out.Set("ratio", m.ratio);
  out.Set("clipLow", m.clip_low);
  out.Set("clipHigh", m.clip_high);
  out.Set("responseTokens", m.response_tokens);
  out.Set("exitLoop", m.exit_loop);
  out.Set("exitEntropy", m.exit_entropy);
  out.Set("loops", number_array(env, m.loops));
  out.Set("loopLogprob", number_array(env, m.loop_logprob));
  out.Set("loopWeight", number_array(env, m.loop_weight));
  out.Set("loopExit", number_array(env, m.loop_exit));
  out.Set("inputVectors", Reals(m.d_vectors, dtype).array(env));
  return out;
}

Napi::Value accumulate_loss_of(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  auto batch = std::make_shared<LossBatch>();
  batch->sequences = Input(info, 1, "sequences").sequences();
  check_vocabulary(batch->sequences, *model);
  const Input values(info, 2, "values");
  batch->length_normalizers = values["lengthNormalizers"].doubles();
  batch->old_logprobs = values["oldLogprobs"].doubles();
  batch->reference_logprobs = values["referenceLogprobs"].doubles();
  batch->lazy_logprobs = values["lazyLogprobs"].doubles();
  batch->reference_entropy = values["referenceEntropy"].doubles();
  batch->reference_exit_pdf = values["referenceExitPdf"].doubles();
  batch->exits = values["exits"].int32s();
  for (int32_t number : values["numbers"].int32s()) batch->numbers.push_back(uint32_t(number));
  batch->segments = values["segments"].int32s();
  batch->mask = values["mask"].int32s();
  auto objective = std::make_shared<Objective>(read_objective(Input(info, 3, "objective"), values));
  if (Input(info, 3, "objective")["replayExits"].flag()) batch->sequences.exits = batch->exits;
  return model.executor->submit(
      info.Env(), Input(info, 4, "cancel").cancel(), [model = model.object, batch, objective]() -> Executor::Finish {
        return [metrics = accumulate_loss(*model, *batch, *objective), dtype = model->dt](Napi::Env env) {
          report_memory(env);
          return metrics_object(env, metrics, dtype);
        };
      });
}

Napi::Value response_means_of(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  const auto sequences = read_sequences(info, *model);
  const ScoreOptions options = read_score_options(Input(info, 2, "options"));
  return model.executor->submit(info.Env(), Input(info, 3, "cancel").cancel(),
                                [model = model.object, sequences, options]() -> Executor::Finish {
                                  return [means = response_means(*model, *sequences, options)](Napi::Env env) {
                                    Napi::Object out = Napi::Object::New(env);
                                    out.Set("loops", double(means.loops));
                                    out.Set("logprobs", number_array(env, means.logprobs));
                                    out.Set("exitLoop", number_array(env, means.exit_loop));
                                    report_memory(env);
                                    return out;
                                  };
                                });
}

Napi::Value embed_of(const Napi::CallbackInfo& info) {
  const auto model = Input(info, 0, "model").object<Model>(Kind::model);
  const auto sequences = read_sequences(info, *model, 1);
  const int loops = int(Input(info, 2, "loops").integer(0, MAX_LOOPS));
  return model.executor->submit(info.Env(), Input(info, 3, "cancel").cancel(),
                                [model = model.object, sequences, loops]() -> Executor::Finish {
                                  auto states = std::make_shared<Reals>(embed_sequences(*model, *sequences, loops), model->dt);
                                  const std::vector<int64_t> widths(sequences->count(), model->config.hidden);
                                  return [states, widths](Napi::Env env) {
                                    report_memory(env);
                                    return split(env, *states, widths, 1, 0);
                                  };
                                });
}

// Reductions over groups, strata and segments for the trainers, on the host without a model.
Napi::Value segment_reduce_of(const Napi::CallbackInfo& info) {
  const Reduce op =
      Input(info, 0, "op")
          .word<Reduce>(
              {{"sum", Reduce::sum}, {"mean", Reduce::mean}, {"count", Reduce::count}, {"deviation", Reduce::deviation}});
  const std::vector<double> values = Input(info, 1, "values").doubles();
  const std::vector<int32_t> ids = Input(info, 2, "ids").int32s();
  if (ids.size() != values.size()) Input(info, 2, "ids").fail("must have one entry per value");
  return number_array(info.Env(), segment_reduce(op, values, ids, Input(info, 3, "count").integer(0, int64_t(1) << 31)));
}

Napi::Value belief_returns_of(const Napi::CallbackInfo& info) {
  const std::vector<double> log_belief = Input(info, 1, "logBelief").doubles();
  if (log_belief.size() < 2) Input(info, 1, "logBelief").fail("needs the belief before any loop and after at least one");
  return number_array(info.Env(),
                      belief_returns(read_belief(Input(info, 0, "rewards")), log_belief, Input(info, 2, "referenceLog").number(),
                                     int(Input(info, 3, "referenceLoop").integer(1, MAX_LOOPS))));
}

// The default number of tokens per micro-batch in training.
Napi::Value micro_batch_tokens(const Napi::CallbackInfo& info) {
  const auto context = Input(info, 0, "context").object<Executor>(Kind::context);
  const Architecture architecture = read_architecture(Input(info, 1, "architecture"));
  const LoopDType dtype = Input(info, 2, "dtype").dtype();
  const int loops = int(Input(info, 3, "loops").integer(1, MAX_LOOPS));
  const Stack::Keep keep = keep_for(read_recompute(Input(info, 4, "recompute")));
  return Napi::Number::New(info.Env(), double(default_budget(*context.object->device(), architecture, dtype, loops, keep)));
}

}  // namespace

void add_loss_functions(Napi::Env env, Napi::Object exports) {
  add<micro_batch_tokens>(env, exports, "microBatchTokens");
  add<score_of>(env, exports, "modelScore");
  add<backward_of>(env, exports, "modelBackward");
  add<accumulate_loss_of>(env, exports, "modelAccumulateLoss");
  add<response_means_of>(env, exports, "modelResponseMeans");
  add<embed_of>(env, exports, "modelEmbed");
  add<segment_reduce_of>(env, exports, "segmentReduce");
  add<belief_returns_of>(env, exports, "beliefReturns");
}

}  // namespace looplm::addon
