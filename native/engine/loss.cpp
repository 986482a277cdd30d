#include "loss.h"

#include <algorithm>
#include <utility>

#include "exit_terms.h"
#include "loss_totals.h"
#include "pass.h"
#include "token_terms.h"

namespace looplm {

namespace {

// Computes a loss, one micro-batch after the other: the values of its tokens, from these the coefficients ∂L/∂ℓ and ∂L/∂p,
// then the backward pass. If each row's coefficient depends only on the row's own log-probability, the head runs once: the
// same RowLoss makes the coefficients inside the head's backward pass.
class LossPass {
 public:
  LossPass(Model& model, const LossInput& in)
      : model_(model),
        in_(in),
        o_(in.objective),
        totals_(in),
        final_(std::exchange(model.next_final, {})),
        d_vectors_(in.batch.sequences.vectors.values.size()) {
    const auto token = [](const LossTerm& term) { return term.channel == Channel::token; };
    const auto needs_two_passes = [](const LossTerm& term) { return needs_values(term) || term.belief; };
    one_pass_ = !o_.lazy && std::count_if(o_.terms.begin(), o_.terms.end(), token) <= 1 &&
                std::none_of(o_.terms.begin(), o_.terms.end(), needs_two_passes);
  }

  LossMetrics run() {
    model_.gradients();
    const int64_t budget = o_.tokens_per_micro_batch;
    const PackOptions options{budget > 0 ? budget : default_budget(model_, in_.plan.loops, keep_for(o_.recompute)),
                              o_.share_prompts,
                              true,
                              false,
                              model_.config.prefix_sees_itself,
                              &in_.batch.mask};
    for_micro_batches(in_.batch.sequences, options, [&](const PackedBatch& packed) {
      if (!packed.rows.empty()) micro_batch(packed);
    });
    LossMetrics metrics = totals_.metrics();
    metrics.d_vectors = std::move(d_vectors_);
    return metrics;
  }

 private:
  void micro_batch(const PackedBatch& packed) {
    MicroBatch batch(model_, model_.weights(), in_.batch.sequences, packed, {in_.stack_plan(), keep_for(o_.recompute)});
    batch.stack.forward_tokens();
    const bool gate = model_.config.exit_gate;
    const ExitTable last = gate ? ExitTable{} : last_loop_exits(int64_t(packed.rows.size()), in_.loops.count());
    LossRows rows{packed, gate ? batch.exits() : last, in_.exit_loops(packed)};
    std::vector<double> d_pdf(rows.exits.pdf.size(), 0.0);
    if (!in_.loops.scored.empty()) {
      const HeadRows head = batch.rows(in_.hidden_of_scored(), o_.temperature);
      if (one_pass_) from_own_values(batch, head, rows, d_pdf);
      else from_all_values(batch, head, rows, d_pdf);
    }
    std::vector<double> d_log_pdf;
    for (const LossTerm& term : o_.terms) {
      if (term.channel != Channel::exit) continue;
      d_log_pdf.resize(d_pdf.size());
      totals_.add_policy_loss(add_exit_term(in_, rows, term, d_log_pdf));
    }
    totals_.add_loss(add_exit_entropy(in_, rows, d_pdf));
    totals_.add_rows(rows);
    if (trains_exits(o_)) batch.backward_exits(d_pdf, d_log_pdf);
    batch.backward(final_);
    read_vector_gradients(model_, in_.batch.sequences, packed, d_vectors_);
  }

  void from_own_values(MicroBatch& batch, const HeadRows& head, LossRows& rows, std::vector<double>& d_pdf) {
    const LossTerm* term = in_.first_token_term();
    RowLoss loss = given_coefficients(RowTable(term ? 0 : size_t(head.rows), 0.0));
    if (term) loss = row_loss(in_, rows, *term, weights_of(*term, rows));
    add_regularisers(in_, rows, loss);
    batch.backward_head(head, loss, &rows.values);
    totals_.add(sums_of(loss, rows.values.logprobs, model_.real()));
    if (term && attached(*term)) add_weight_gradient(in_, rows, *term, loss.advantage, d_pdf);
    add_entropy_bonus(rows, loss);
  }

  void from_all_values(MicroBatch& batch, const HeadRows& head, LossRows& rows, std::vector<double>& d_pdf) {
    rows.values = batch.values(head);
    const size_t count = size_t(head.rows);
    const void* logprobs = model_.memory().head.values.as<>();
    RowTable total(count, 0.0);
    for (const LossTerm& term : o_.terms) {
      if (term.channel != Channel::token) continue;
      const RowTable w = weights_of(term, rows);
      const RowLoss loss = row_loss(in_, rows, term, w);
      Coefficients c = coefficients_of(model_, upload(model_, loss), logprobs, count);
      if (term.surrogate == Surrogate::k15) c.sums.loss = c.sums.policy_loss = k15_loss(in_, rows, term, w);
      totals_.add(c.sums);
      for (size_t i = 0; i < count; i++) total[i] += c.values[i];
      if (attached(term)) add_weight_gradient(in_, rows, term, loss.advantage, d_pdf);
    }
    if (o_.lazy) totals_.add_lazy_loss(add_lazy_likelihood(in_, rows, total));
    RowLoss regularisers = given_coefficients(RowTable(count, 0.0));
    add_regularisers(in_, rows, regularisers);
    totals_.add(sums_of(regularisers, rows.values.logprobs, model_.real()));
    regularisers.scale = std::move(total);
    batch.backward_head(head, regularisers);
    add_entropy_bonus(rows, regularisers);
  }

  RowTable weights_of(const LossTerm& term, const LossRows& rows) {
    RowTable w = loop_weights(term.weights, in_.loops, rows.exits, rows.exit_loops);
    if (&term == in_.first_token_term()) totals_.add_weights(w, rows.R());
    return w;
  }
  // The head's backward pass includes the entropy gradient, but the sums of the rows do not include the entropy's loss: add
  // it here.
  void add_entropy_bonus(const LossRows& rows, const RowLoss& loss) {
    for (size_t i = 0; i < loss.entropy_scale.size(); i++) totals_.add_loss(-loss.entropy_scale[i] * rows.values.entropies[i]);
  }

  Model& model_;
  const LossInput& in_;
  const Objective& o_;
  LossTotals totals_;
  const GradientsFinal final_;
  std::vector<double> d_vectors_;
  bool one_pass_ = false;
};

}  // namespace

LossMetrics accumulate_loss(Model& model, const LossBatch& batch, const Objective& objective) {
  const Remedy remedy(*model.device, training_remedy(objective.recompute));
  return LossPass(model, LossInput(model, batch, objective)).run();
}

}  // namespace looplm
