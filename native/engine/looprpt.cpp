#include "looprpt.h"

#include <algorithm>
#include <cmath>

#include "hard_tokens.h"
#include "looprpt_draws.h"
#include "pass.h"
#include "segments.h"

namespace looplm {

namespace {

struct Statistics {
  double mean = 0, deviation = 0;  // unbiased standard deviation
};
Statistics statistics(const std::vector<double>& x) {
  Statistics s;
  for (double v : x) s.mean += v / double(x.size());
  for (double v : x) s.deviation += (v - s.mean) * (v - s.mean);
  s.deviation = std::sqrt(s.deviation / double(x.size() - 1));
  return s;
}

void check(const Model& student, const Model& teacher, const LoopRptBatch& batch, const LoopRptOptions& o) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw Error("INVALID_ARGUMENT", "looprpt", what);
  };
  check_sequences(student, batch.sequences, "looprpt");
  check_mask(batch.sequences, batch.mask, "looprpt");
  require(teacher.device == student.device && teacher.dt == student.dt && teacher.config == student.config &&
              teacher.quantization.bits == student.quantization.bits,
          "the teacher must have the student's configuration, device and dtype");
  require_exit_gate(student, "looprpt", "LoopRPT");
  require(o.noise_site != NoiseSite::residual || student.config.loop.back().kind == Step::Kind::norm,
          "noiseSite residual is before the norm that closes a loop, and this model's loops have none: use noiseSite state");
  require((o.loops > 0 ? o.loops : student.config.loops) >= 2, "LoopRPT compares loops: the model needs at least two");
  require(o.rollouts >= 2 && o.rollouts <= 1 << 16,
          "rollouts must be from 2 to 65536: advantages compare the rollouts of a token");
  require(!o.antithetic || o.rollouts % 2 == 0, "antithetic noise comes in pairs: rollouts must be even");
  require(o.rho > 0 && o.rho <= 1, "rho must be in (0, 1]");
  require(batch.ids.size() == batch.sequences.count(), "a batch needs one id per sequence");
}

// Sampled exits, rewards and advantages of the rollouts, [G, R]: rollout by rollout, one value for each row of a part.
struct RolloutResults {
  std::vector<int> exits;  // 0-based
  std::vector<double> rewards, advantages;
};

// The batch is processed in chunks of whole sequences, as many tokens as a micro-batch holds.
// Noise starts after the first loop, so the first loop is the same in the clean pass and in all rollouts of a chunk. It runs
// once. The G + 1 passes run the other loops from its states, and the sum of their gradients goes back through the first loop
// once.
// An advantage needs the rewards of all G rollouts of its token. If the rollouts do not fit into one micro-batch, their
// states are not kept: all of them run forward for the rewards, then run again with the same noise for the backward pass.
// Cost for T loops, in forward passes: 1 + 3 + 3 G (T-1)/T, plus at most G (T-1)/T if rollouts run twice. For T = 4 and G = 8
// that is 22 or 28; G + 1 whole passes without any rerun would need 28.
// Models with more than one register, or with a separate readout, run every pass whole.
class LoopRptPass {
 public:
  LoopRptPass(Model& student, Model& teacher, const LoopRptBatch& batch, const LoopRptOptions& options)
      : student_(student),
        teacher_(teacher),
        batch_(batch),
        s_(batch.sequences),
        o_(options),
        loops_(options.loops > 0 ? options.loops : student.config.loops),
        budget_(options.tokens_per_micro_batch > 0 ? options.tokens_per_micro_batch : default_budget(student, loops_, keep())),
        draws_(student, batch, options, loops_) {
    std::vector<int32_t> responses = batch.responses;
    if (responses.empty())
      for (size_t i = 0; i < s_.count(); i++) responses.push_back(kept_predictions(i));
    for (int32_t tokens : responses) count_ += double(hard_count(o_.rho, tokens));
    if (count_ == 0) throw Error("INVALID_ARGUMENT", "looprpt", "no sequence has a token after its prompt");
  }

  LoopRptMetrics run() {
    for (auto* of_loops : {&totals_.loop_logprob, &totals_.loop_weight, &totals_.loop_exit})
      of_loops->assign(size_t(loops_), 0.0);
    student_.gradients();
    for_micro_batches(s_, pack_options(budget_), [&](PackedBatch& packed) {
      if (!packed.rows.empty()) chunk(packed);
    });
    totals_.tokens = count_;
    totals_.loss = o_.policy * totals_.policy_loss + o_.representation * totals_.representation_loss +
                   o_.entropy * totals_.entropy_loss + o_.kl * totals_.kl;
    return totals_;
  }

 private:
  int32_t kept_predictions(size_t i) const {
    int32_t count = 0;
    for (int64_t j = s_.prompt(i) - 1; j < s_.length(i) - 1; j++)
      count += batch_.mask.empty() || batch_.mask[size_t(s_.offsets[i] - int64_t(i) + j)] != 0;
    return count;
  }
  int64_t D() const { return student_.config.hidden; }
  size_t real() const { return loop_dtype_size(student_.real()); }
  size_t act() const { return loop_dtype_size(student_.dt); }
  Stack::Keep keep() const { return keep_for(o_.recompute); }
  PackOptions pack_options(int64_t budget) const {
    return {budget, false, true, false, student_.config.prefix_sees_itself, &batch_.mask};
  }
  // Whether the other loops need nothing but register 0 after the first loop.
  bool shares_first() const { return student_.config.registers == 1 && student_.config.read.empty(); }
  MicroBatch one_loop(const PackedBatch& packed, Stack::Keep keep) {
    return {student_, student_.weights(), s_, packed, {1, keep}};
  }
  // to [elements] += from, both real
  void add(void* to, const void* from, int64_t elements) {
    const int64_t stride = 1;
    student_.device->run(&LoopBackend::binary, "add", student_.real(), LOOP_ADD, 1, &elements, to, &stride, from, &stride, to);
  }

  void chunk(PackedBatch& packed) {
    HardTokens hard(student_, teacher_, s_, packed, o_, loops_);
    for (size_t i = 0; i < hard.count(); i++) totals_.reference_loop += double(hard[i].reference_loop + 1) / count_;
    const size_t elements = size_t(packed.tokens() * D());
    LoopRptMemory& memory = student_.memory().looprpt;
    memory.first.reserve(student_.device, elements * act());
    memory.d_first.reserve(student_.device, elements * real());
    if (shares_first()) {
      MicroBatch one = one_loop(packed, Stack::Keep::nothing);
      one.stack.forward_tokens();
      student_.device->run(&LoopBackend::copy, "copy", memory.first.as<>(), one.stack.hidden(), elements * act());
    }
    memory.d_first.zero(elements * real());
    clean_pass(packed, hard);
    // Each part holds as many sequences as fit G times into the budget, but at least one.
    for (size_t begin = packed.begin; begin < packed.end;) {
      PackedBatch part = pack(s_, begin, pack_options(budget_ / o_.rollouts), packed.end);
      hard.keep_rows(part);
      const size_t at = size_t(packed.first_token[begin - packed.begin] * D());
      if (!part.rows.empty()) rollouts(part, hard, memory.first.at(at * act()), memory.d_first.at(at * real()));
      begin = part.end;
    }
    if (!shares_first()) return;
    MicroBatch one = one_loop(packed, keep());
    one.stack.forward_tokens();
    one.stack.backward(student_.gradients(), memory.d_first.as<>());
  }

  // L_rep = -Σ_k w_k ℓ_k with w_k = p_k (1 + ReLU(z_k)), z_k the z-score of R(k) over the loops, detached; and L_ent = -H(p).
  void clean_pass(const PackedBatch& packed, HardTokens& hard) {
    LoopRptMemory& memory = student_.memory().looprpt;
    MicroBatch batch(student_, student_.weights(), s_, packed, {loops_, keep(), nullptr, shares_first()});
    if (shares_first()) batch.stack.forward_after_first(memory.first.as<>(), 1);
    else batch.stack.forward_tokens();
    const ExitTable& exits = batch.exits();
    const size_t R = packed.rows.size(), T = size_t(loops_);
    const HeadRows head = batch.rows(all_loops(loops_), 1);
    const std::vector<double> logprobs = batch.values(head, true, false).logprobs;

    std::vector<double> coefficients(T * R), d_pdf(T * R);
    for (size_t r = 0; r < R; r++) {
      HardToken& h = hard[r];
      std::vector<double> rewards;
      for (size_t t = 0; t < T; t++) {
        h.clean.push_back(logprobs[t * R + r]);
        rewards.push_back(h.reward(int(t), logprobs[t * R + r]));
      }
      const Statistics s = statistics(rewards);
      for (size_t t = 0; t < T; t++) {
        const double p = exits.pdf[t * R + r], log_p = exits.log_pdf[t * R + r], l = logprobs[t * R + r];
        const double w = p * (1 + std::max(0.0, (rewards[t] - s.mean) / (s.deviation + DEVIATION_EPSILON)));
        coefficients[t * R + r] = -o_.representation * w / count_;
        d_pdf[t * R + r] = o_.entropy * (log_p + 1) / count_;
        totals_.representation_loss -= w * l / count_;
        totals_.entropy_loss += (p > 0 ? p * log_p : 0) / count_;
        totals_.mean_loop += double(t + 1) * p / count_;
        totals_.loop_logprob[t] += l / count_;
        totals_.loop_weight[t] += w / count_;
        totals_.loop_exit[t] += p / count_;
      }
    }
    batch.backward_head(head, given_coefficients(std::move(coefficients)));
    batch.backward_exits(d_pdf);
    batch.backward();
    if (shares_first()) add(memory.d_first.as<>(), batch.d_hidden(), packed.tokens() * D());
  }

  bool from_first() const { return shares_first() && o_.noise_site == NoiseSite::state; }
  // Runs some rollouts forward, then calls then(batch).
  template <class F>
  void with_rollouts(const Rollouts& of, Stack::Keep keep, const void* first, F then) {
    const LatentNoise noise = draws_.noise(of);
    MicroBatch batch(student_, student_.weights(), s_, of.packed, {loops_, keep, &noise, from_first()});
    if (from_first()) batch.stack.forward_after_first(first, of.copies());
    else batch.stack.forward_tokens();
    then(batch);
  }

  // L_PG = -mean_g A_g log p(t_g) and L_KL = mean (e^δ - δ - 1). first, d_first: [tokens of `one`, D], the states after the
  // first loop, and their gradient.
  void rollouts(const PackedBatch& one, const HardTokens& hard, const void* first, void* d_first) {
    const int G = o_.rollouts, fitting = int(std::clamp<int64_t>(budget_ / one.tokens(), 1, G)),
              parts = (G + fitting - 1) / fitting;
    const auto part = [&](int i) { return Rollouts(one, G * i / parts, G * (i + 1) / parts); };
    RolloutResults results;
    for (int i = 0; i < parts; i++) {
      const Rollouts of = part(i);
      const bool last = i + 1 == parts;  // the states of the last part are still in memory for its backward pass
      with_rollouts(of, last ? keep() : Stack::Keep::nothing, first, [&](MicroBatch& batch) {
        add_rewards(of, hard, batch, results);
        if (!last) return;
        compare(one.rows.size(), results);
        backward(of, hard, batch, results, d_first);
      });
    }
    for (int i = 0; i + 1 < parts; i++) {
      const Rollouts of = part(i);
      with_rollouts(of, keep(), first, [&](MicroBatch& batch) { backward(of, hard, batch, results, d_first); });
    }
  }

  // Draws the exit of every token in these rollouts, and computes the rewards.
  void add_rewards(const Rollouts& of, const HardTokens& hard, MicroBatch& batch, RolloutResults& results) {
    const size_t rows = of.packed.rows.size(), from = results.exits.size();
    const ExitTable& exits = batch.exits();
    for (size_t r = 0; r < rows; r++) results.exits.push_back(draws_.exit(of.packed.rows[r], of.rollout(r), exits, r));
    std::vector<double> logprobs;
    if (!o_.clean_rewards) {
      const std::vector<int> loops(results.exits.begin() + ptrdiff_t(from), results.exits.end());
      logprobs = batch.values(batch.rows_at(loops, 1), true, false).logprobs;
    }
    for (size_t r = 0; r < rows; r++) {
      const HardToken& h = hard.of(of.packed.rows[r]);
      const int exit = results.exits[from + r];
      results.rewards.push_back(h.reward(exit, o_.clean_rewards ? h.clean[size_t(exit)] : logprobs[r]));
    }
  }

  // Advantages: z-scores over the G rollouts of each of the R tokens.
  void compare(size_t R, RolloutResults& results) {
    const size_t G = size_t(o_.rollouts);
    results.advantages.resize(G * R);
    for (size_t r = 0; r < R; r++) {
      std::vector<double> of_token;
      for (size_t g = 0; g < G; g++) of_token.push_back(results.rewards[g * R + r]);
      const Statistics s = statistics(of_token);
      totals_.reward += s.mean / count_;
      totals_.reward_std += s.deviation / count_;
      for (size_t g = 0; g < G; g++) {
        results.advantages[g * R + r] = (of_token[g] - s.mean) / (s.deviation + DEVIATION_EPSILON);
        totals_.exit_loop += double(results.exits[g * R + r] + 1) / (double(G) * count_);
      }
    }
  }

  // The backward pass of the rollouts that have just run.
  void backward(const Rollouts& of, const HardTokens& hard, MicroBatch& batch, const RolloutResults& results, void* d_first) {
    const size_t rows = of.packed.rows.size(), from = size_t(of.begin) * of.one.rows.size();
    const double share = 1 / (double(o_.rollouts) * count_);
    const ExitTable& exits = batch.exits();
    if (o_.kl != 0) stay_near_teacher(of, hard, batch, share);
    std::vector<double> d_log_pdf(exits.pdf.size(), 0.0);
    for (size_t r = 0; r < rows; r++) {
      const size_t at = size_t(results.exits[from + r]) * rows + r;
      totals_.policy_loss -= results.advantages[from + r] * exits.log_pdf[at] * share;
      d_log_pdf[at] = -o_.policy * results.advantages[from + r] * share;
    }
    batch.backward_exits(std::vector<double>(d_log_pdf.size(), 0.0), d_log_pdf);
    batch.backward();
    if (!from_first()) return;
    const int64_t elements = of.one.tokens() * D();
    for (int i = 0; i < of.copies(); i++)
      add(d_first, static_cast<char*>(batch.d_hidden()) + size_t(i * elements) * real(), elements);
  }

  // The KL term. Each row's weight is known before the head runs, so one pass computes log-probabilities and gradient.
  void stay_near_teacher(const Rollouts& of, const HardTokens& hard, MicroBatch& batch, double share) {
    const bool last = o_.kl_reduction == KlReduction::last;
    const std::vector<int> loops = last ? std::vector<int>{loops_ - 1} : all_loops(loops_);
    const size_t rows = of.packed.rows.size();
    RowLoss loss = given_coefficients(std::vector<double>(loops.size() * rows, 0.0));
    std::vector<double> weight;
    for (int t : loops)
      for (size_t r = 0; r < rows; r++) {
        loss.reference_logprob.push_back(hard.of(of.packed.rows[r]).teacher[size_t(t)]);
        weight.push_back(last                                       ? share
                         : o_.kl_reduction == KlReduction::weighted ? share * batch.exits().pdf[size_t(t) * rows + r]
                                                                    : share / loops_);
        loss.kl_scale.push_back(o_.kl * weight.back());
      }
    TokenValues values;
    batch.backward_head(batch.rows(loops, 1), loss, &values);
    for (size_t i = 0; i < weight.size(); i++) {
      const double d = loss.reference_logprob[i] - values.logprobs[i];
      totals_.kl += (std::exp(d) - d - 1) * weight[i];
    }
  }

  Model &student_, &teacher_;
  const LoopRptBatch& batch_;
  const Sequences& s_;
  const LoopRptOptions& o_;
  const int loops_;
  const int64_t budget_;
  const LoopRptDraws draws_;
  double count_ = 0;  // hard tokens in the whole logical batch
  LoopRptMetrics totals_;
};

}  // namespace

LoopRptMetrics accumulate_looprpt(Model& student, Model& teacher, const LoopRptBatch& batch, const LoopRptOptions& options) {
  const Remedy remedy(*student.device, training_remedy(options.recompute));
  check(student, teacher, batch, options);
  return LoopRptPass(student, teacher, batch, options).run();
}

}  // namespace looplm
