// The loss. The same term gives the same result whether its coefficients are computed inside the head's pass or outside, and
// in one micro-batch or several. Also how the loops that are read are weighted.
#include <cmath>

#include "../../engine/loop_weights.h"
#include "../../engine/loss.h"
#include "../../engine/micro_batch.h"
#include "../../engine/pass.h"
#include "claims.h"
#include "models.h"

namespace looplm::test {
namespace {

std::shared_ptr<Model> model_of_three_loops() {
  auto model =
      std::make_shared<Model>(open_device("reference", 1), LOOP_F64, small_architecture({11, 6, 5, 2, 3, 1, 2, 3, false, 0.4}));
  model->initialize(2);
  return model;
}

LossBatch small_batch() {
  LossBatch b;
  b.sequences.tokens = {1, 2, 3, 4, 5, 1, 2, 6, 7, 1, 2, 8, 9, 10};
  b.sequences.offsets = {0, 5, 9, 14};
  b.sequences.prompt_lengths = {2, 2, 2};
  b.length_normalizers = {0.1, 0.2, 0.3};
  for (size_t i = 0; i < 3 * (14 - 3); i++) b.old_logprobs.push_back(-2.3 + 0.4 * std::sin(double(i)));
  return b;
}

LossTerm term_of(const LossBatch& b, Surrogate surrogate) {
  LossTerm t;
  t.surrogate = surrogate;
  t.weights.kind = LoopWeighting::uniform;
  t.advantages = {1, -0.5, 0.25};
  t.length_normalizers = b.length_normalizers;
  return t;
}

struct Outcome {
  LossMetrics metrics;
  std::vector<double> gradient;
};
Outcome run(Model& model, const LossBatch& batch, const Objective& objective) {
  model.gradients();
  model.zero_gradients();
  Outcome out{accumulate_loss(model, batch, objective), {}};
  for (const Parameter& p : model.parameters())
    for (const double x : model.read_gradient(p)) out.gradient.push_back(x);
  return out;
}
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); i++)
    difference = std::max(difference, std::abs(a[i] - b[i])), size = std::max(size, std::abs(b[i]));
  return difference / size;
}

ENGINE_TEST(loss_one_path, "loss: one pass and two passes of the head") {
  const auto model = model_of_three_loops();
  const LossBatch batch = small_batch();
  for (Surrogate s : {Surrogate::reinforce, Surrogate::ppo, Surrogate::cispo}) {
    Objective one;
    one.terms = {term_of(batch, s)};
    Objective two = one;  // a second term with weight 0 moves the computation out of the head's pass
    two.terms.push_back(one.terms[0]);
    two.terms[1].length_normalizers.assign(3, 0.0);
    LossBatch wide = batch;
    const Outcome a = run(*model, wide, one), b = run(*model, wide, two);
    const std::string name = "surrogate " + std::to_string(int(s));
    claim(name + ": the same gradient", distance(a.gradient, b.gradient) < 1e-13);
    claim(name + ": the same loss", std::abs(a.metrics.loss - b.metrics.loss) < 1e-14);
    claim(name + ": the same ratio", std::abs(a.metrics.ratio - b.metrics.ratio) < 1e-14);
  }
}

ENGINE_TEST(loss_cut, "loss: micro-batches add up") {
  const auto model = model_of_three_loops();
  const LossBatch batch = small_batch();
  Objective whole;
  whole.terms = {term_of(batch, Surrogate::ppo)};
  whole.exit_entropy = 0.1;
  Objective cut = whole;
  cut.tokens_per_micro_batch = 4;
  cut.share_prompts = false;
  const Outcome a = run(*model, batch, whole), b = run(*model, batch, cut);
  claim("the same gradient", distance(a.gradient, b.gradient) < 1e-12);
  claim("the same loss", std::abs(a.metrics.loss - b.metrics.loss) < 1e-13);
  claim("as many tokens", a.metrics.response_tokens == b.metrics.response_tokens);
}

ENGINE_TEST(loss_differences, "loss: gradient by central differences") {
  const auto model = model_of_three_loops();
  const LossBatch batch = small_batch();
  Objective objective;
  objective.terms = {term_of(batch, Surrogate::reinforce)};
  objective.terms[0].weights = {LoopWeighting::exit_pdf, 1, 1, 0, {}, false};  // attached: the gate is trained too
  objective.loops.read = {1, 3};
  objective.exit_entropy = 0.05;
  LossBatch fresh = batch;
  fresh.old_logprobs.clear();
  const Outcome at = run(*model, fresh, objective);
  claim("two loops are measured", at.metrics.loops == std::vector<double>{1, 3} && at.metrics.loop_exit.size() == 2);
  double largest = 0;
  size_t first = 0;
  for (const Parameter& p : model->parameters()) {
    std::vector<double> values = model->read(p);
    for (size_t i = 0; i < p.count; i += 5) {
      const double x = values[i];
      const auto moved = [&](double by) {
        values[i] = x + by;
        model->write(p, values.data());
        return run(*model, fresh, objective).metrics.loss;
      };
      const double difference = derivative(moved);
      moved(0);
      largest = std::max(largest, std::abs(difference - at.gradient[first + i]) / std::max(1.0, std::abs(difference)));
    }
    first += p.count;
  }
  claim("of every parameter", largest < 1e-8, std::to_string(largest * 1e9) + "e-9");
}

ENGINE_TEST(budgets, "loss: micro-batches of large models have fewer tokens") {
  const auto model = model_of_three_loops();
  const auto tokens = [&](int loops, Stack::Keep keep) { return default_budget(*model, loops, keep); };
  const int64_t usual = model->device->micro_batch_tokens();
  claim("activations that fit take the device's number", tokens(1000, Stack::Keep::all) >= usual);
  claim("those that do not take fewer", tokens(20'000, Stack::Keep::all) < usual);
  claim("what is not kept does not count", tokens(20'000, Stack::Keep::per_loop) > tokens(20'000, Stack::Keep::all) &&
                                               tokens(20'000, Stack::Keep::nothing) == usual);
  claim("never so few that products are slow", tokens(1'000'000, Stack::Keep::all) == 256);
}

ENGINE_TEST(loop_weights_sum, "loop weights: sum to 1") {
  ExitTable exits{2, 3, {0.5, 0.1, 0.3, 0.2, 0.2, 0.7}, {}};
  for (const double p : exits.pdf) exits.log_pdf.push_back(std::log(p));
  const ReadLoops loops{{3, 7, 15}, {0, 1, 2}};
  const auto sums = [&](const LoopWeights& weights) {
    const std::vector<double> w = loop_weights(weights, loops, exits);
    return std::abs(w[0] + w[2] + w[4] - 1) < 1e-15 && std::abs(w[1] + w[3] + w[5] - 1) < 1e-15;
  };
  claim("exit_pdf", sums({LoopWeighting::exit_pdf}));
  claim("exit_pdf at a temperature", sums({LoopWeighting::exit_pdf, 0.5}));
  claim("uniform", sums({LoopWeighting::uniform}));
  claim("progressive", sums({LoopWeighting::progressive, 1, 2}));
  claim("one_hot", sums({LoopWeighting::one_hot, 1, 1, 8}));
  claim("given", sums({LoopWeighting::given, 1, 1, 0, {0.25, 0.25, 0.5}}));
  claim("progressive grows with the number of the loop", loop_weights({LoopWeighting::progressive}, loops, exits)[2] == 8.0 / 28);
  const std::vector<double> left = loop_weights({LoopWeighting::exit_loop}, loops, exits, {2, 0});
  claim("exit_loop: one at the exit of each row", left == std::vector<double>{0, 1, 0, 0, 1, 0});
  claim("a loop that is not read has no weight", !names_loops({LoopWeighting::one_hot, 1, 1, 5}, loops));
}

ENGINE_TEST(loss_refusals, "loss: refuses what does not fit") {
  const auto model = model_of_three_loops();
  const LossBatch batch = small_batch();
  Objective objective;
  objective.terms = {term_of(batch, Surrogate::ppo)};
  const auto refused = [&](const std::string& name, const std::string& code, const std::string& part, const Objective& o,
                           const LossBatch& b) { refuses(name, code, {part}, [&] { run(*model, b, o); }); };
  Objective o = objective;
  o.loops.read = {2, 2};
  refused("loops that do not grow", "INVALID_ARGUMENT", "readLoops", o, batch);
  o.loops.read = {4};
  refused("a loop that does not run", "INVALID_ARGUMENT", "readLoops", o, batch);
  o = objective;
  o.terms[0].weights = {LoopWeighting::one_hot, 1, 1, 2};
  o.loops.read = {1, 3};
  refused("weights of a loop that is not read", "INVALID_ARGUMENT", "one-hot weights", o, batch);
  LossBatch b = batch;
  b.old_logprobs.resize(11);
  refused("ratios of one loop where several are weighted", "INVALID_SHAPE", "oldLogprobs", objective, b);
  b = batch;
  b.length_normalizers.pop_back();
  refused("a normaliser too few", "INVALID_ARGUMENT", "normaliser", objective, b);
}

}  // namespace
}  // namespace looplm::test
