#include "looprpt.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../numeric/half.h"
#include "pass.h"
#include "../numeric/philox.h"
#include "safetensors.h"
#include "segments.h"

namespace looplm {

namespace {

// A prediction that counts: one of the hard tokens of its sequence, with what the teacher and the clean pass say of it.
struct HardToken {
  int32_t sequence, position;
  int reference_loop;  // t_ref, 0-based
  double reference_logprob, price;
  std::vector<double> teacher, clean;  // ℓ of every loop
};

struct Statistics {
  double mean = 0, deviation = 0;  // unbiased
};
Statistics statistics(const std::vector<double>& x) {
  Statistics s;
  for (double v : x) s.mean += v / double(x.size());
  for (double v : x) s.deviation += (v - s.mean) * (v - s.mean);
  s.deviation = std::sqrt(s.deviation / double(x.size() - 1));
  return s;
}

// Of a sequence's predictions so many are hard.
size_t hard_count(double rho, int64_t predictions) { return size_t(std::ceil(rho * double(predictions))); }

// The batch goes through in chunks of whole sequences, as many tokens as a micro-batch holds. Noise begins behind the first loop,
// so that this loop is the same in the clean pass and in all rollouts of a chunk: it runs once, the loops behind it run for each
// of the G + 1 passes from its states, and the sum of the gradients that they leave there goes back through it once. An
// advantage needs the rewards of all G rollouts of its token. Where they do not fit into one micro-batch their states are not
// kept: all rollouts run forward for the rewards alone, and run again, with the same noise, for the backward. With T loops the
// whole costs about 1 + 3 + 3 G (T-1)/T forwards, and at most G (T-1)/T more when rollouts are run again: for T = 4 and G = 8
// that is 22 and 28, where G + 1 whole passes would need 28. Models with further registers, or with a readout of their own, run
// all passes whole.
class LoopRptPass {
 public:
  LoopRptPass(Model& student, Model& teacher, const LoopRptBatch& batch, const LoopRptOptions& options)
      : student_(student),
        teacher_(teacher),
        batch_(batch),
        s_(batch.sequences),
        o_(options),
        loops_(options.loops > 0 ? options.loops : student.config.loops),
        budget_(options.tokens_per_micro_batch > 0 ? options.tokens_per_micro_batch : default_budget(student, loops_)) {
    check();
    for (size_t i = 0; i < s_.count(); i++) {
      count_ += double(hard_count(o_.rho, s_.length(i) - s_.prompt(i)));
      noise_at_.push_back(noise_end_);
      exits_at_.push_back(exits_end_);
      noise_end_ += o_.rollouts * loops_ * s_.length(i) * student_.config.hidden;
      exits_end_ += o_.rollouts * (s_.length(i) - 1);
    }
    check_draws();
  }

  LoopRptMetrics run() {
    totals_.loop_logprob.assign(size_t(loops_), 0.0);
    totals_.loop_weight.assign(size_t(loops_), 0.0);
    totals_.loop_exit.assign(size_t(loops_), 0.0);
    student_.gradients();
    for (size_t begin = 0; begin < s_.count();) {
      PackedBatch packed = pack(s_, begin, pack_options(budget_));
      begin = packed.end;
      if (!packed.rows.empty()) chunk(packed);
    }
    totals_.tokens = count_;
    totals_.loss = o_.policy * totals_.policy_loss + o_.representation * totals_.representation_loss +
                   o_.entropy * totals_.entropy_loss + o_.kl * totals_.kl;
    return totals_;
  }

 private:
  static void require(bool ok, const char* what) {
    if (!ok) throw Error("INVALID_ARGUMENT", "looprpt", what);
  }
  void check() const {
    check_sequences(student_, s_, "looprpt");
    require(teacher_.device == student_.device && teacher_.dt == student_.dt && teacher_.config == student_.config &&
                teacher_.quantization.bits == student_.quantization.bits,
            "the teacher must have the student's configuration, device and dtype");
    require_exit_gate(student_, "looprpt", "LoopRPT");
    require(o_.noise_site != NoiseSite::residual || student_.config.loop.back().kind == Step::Kind::norm,
            "noiseSite residual is before the norm that closes a loop, and this model's loops have none: use noiseSite state");
    require(loops_ >= 2, "LoopRPT compares loops: the model needs at least two");
    require(o_.rollouts >= 2 && o_.rollouts <= 1 << 16,
            "rollouts must be at least 2, for advantages compare the rollouts of a token, and at most 65536");
    require(!o_.antithetic || o_.rollouts % 2 == 0, "antithetic noise comes in pairs: rollouts must be even");
    require(o_.rho > 0 && o_.rho <= 1, "rho must be in (0, 1]");
    require(batch_.ids.size() == s_.count(), "a batch needs one id per sequence");
  }
  void check_draws() const {
    require(count_ > 0, "no sequence has a token after its prompt");
    require(batch_.noise.empty() || int64_t(batch_.noise.size()) == noise_end_,
            "noise must hold rollouts × loops × len × hidden_size values per sequence");
    require(batch_.exits.empty() || int64_t(batch_.exits.size()) == exits_end_,
            "exits must hold rollouts × (len-1) values per sequence");
    require(std::all_of(batch_.exits.begin(), batch_.exits.end(), [&](int32_t t) { return t >= 0 && t < loops_; }),
            "exits are loops counted from 0");
  }

  int64_t D() const { return student_.config.hidden; }
  size_t real() const { return loop_dtype_size(student_.real()); }
  Workspace& workspace() { return student_.workspace(); }

  // Every pass runs in the student's workspace.
  Stack stack(const Model& model, const PackedBatch& packed, int loops, Stack::Keep keep, const LatentNoise* noise = nullptr,
              bool first_given = false) {
    return Stack(student_, model.weights(), device_batch(student_, s_, packed), loops, keep, nullptr, noise, first_given);
  }
  Stack::Keep keep() const { return keep_for(o_.recompute); }
  PackOptions pack_options(int64_t budget) const { return {budget, false, true, false, student_.config.prefix_sees_itself}; }
  // Whether register 0 behind the first loop is all that the other loops need.
  bool shares_first() const { return student_.config.registers == 1 && student_.config.read.empty(); }

  void chunk(PackedBatch& packed) {
    choose(packed);
    const size_t elements = size_t(packed.tokens() * D());
    Buffer& first = workspace().get("looprpt.first", elements * loop_dtype_size(student_.dt));
    if (shares_first()) {
      Stack one = stack(student_, packed, 1, Stack::Keep::nothing);
      one.forward_tokens();
      student_.device->run(&LoopBackend::copy, "copy", first.as<>(), static_cast<const void*>(one.hidden()),
                           elements * loop_dtype_size(student_.dt));
    }
    Buffer& d_first = workspace().get("looprpt.d_first", elements * real());
    d_first.zero(elements * real());
    clean_pass(packed, first, d_first);
    // Rollouts of as many sequences as fit G times over, at least of one.
    for (size_t begin = packed.begin; begin < packed.end;) {
      PackedBatch part = pack(s_, begin, pack_options(budget_ / o_.rollouts), packed.end);
      keep_hard_rows(part);
      const size_t at = size_t(packed.first_token[begin - packed.begin] * D());
      if (!part.rows.empty()) rollouts(part, first.at(at * loop_dtype_size(student_.dt)), d_first.at(at * real()));
      begin = part.end;
    }
    if (!shares_first()) return;
    Stack one = stack(student_, packed, 1, keep());
    one.forward_tokens();
    one.backward(student_.gradients(), d_first.as<>());
  }

  // The hard tokens: of each sequence the ceil(rho·n) predictions of highest teacher entropy at the last loop, the earlier one of
  // equals. Leaves their rows in the batch.
  void choose(PackedBatch& packed) {
    Stack teacher = stack(teacher_, packed, loops_, Stack::Keep::nothing);
    teacher.forward_tokens();
    const size_t T = size_t(loops_), all = packed.rows.size();
    Buffer& out = workspace().get("loss.logprobs", T * all * real());
    head_forward(student_, teacher_rows(teacher, packed, {loops_ - 1}), nullptr, out.as<>());
    const std::vector<double> entropy = download_reals(out, student_.dt, all);

    hard_.clear();
    index_.assign(packed.end - packed.begin, {});
    begin_ = packed.begin;
    for (size_t r = 0; r < all;) {
      const int32_t sequence = packed.rows[r].sequence;
      std::vector<size_t> order;
      for (; r < all && packed.rows[r].sequence == sequence; r++) order.push_back(r);
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entropy[a] > entropy[b]; });
      order.resize(hard_count(o_.rho, int64_t(order.size())));
      std::sort(order.begin(), order.end());
      auto& index = index_[size_t(sequence) - begin_];
      index.assign(size_t(s_.length(size_t(sequence)) - 1), -1);
      for (size_t row : order) {
        const double share = entropy[row] / std::log(double(student_.config.vocabulary));
        index[size_t(packed.rows[row].position)] = int64_t(hard_.size());
        hard_.push_back({sequence,
                         packed.rows[row].position,
                         loops_ - 1,
                         0,
                         o_.lambda_base * (1 + o_.lambda_scale * (1 - std::clamp(share, 0.0, 1.0))),
                         {},
                         {}});
      }
    }
    keep_hard_rows(packed);

    const size_t R = packed.rows.size();  // row r is hard_[r]
    const ExitTable exits = exit_table(student_, teacher, packed, loops_);
    head_forward(student_, teacher_rows(teacher, packed, all_loops(loops_)), out.as<>(), nullptr);
    const std::vector<double> logprobs = download_reals(out, student_.dt, T * R);
    for (size_t r = 0; r < R; r++) {
      HardToken& h = hard_[r];
      double cdf = 0;
      for (size_t t = 0; t < T; t++) {
        h.teacher.push_back(logprobs[t * R + r]);
        cdf += exits.pdf[t * R + r];
        if (cdf >= o_.tau) h.reference_loop = std::min(h.reference_loop, int(t));
      }
      h.reference_logprob = h.teacher[size_t(h.reference_loop)];
      totals_.reference_loop += double(h.reference_loop + 1) / count_;
    }
  }
  HeadRows teacher_rows(const Stack& teacher, const PackedBatch& packed, const std::vector<int>& loops) {
    HeadRows rows = head_rows(student_, teacher, packed, loops, 1);
    rows.weight = teacher_.weights().head;
    return rows;
  }

  int64_t hard_index(const PredictionRow& row) const { return index_[size_t(row.sequence) - begin_][size_t(row.position)]; }
  void keep_hard_rows(PackedBatch& packed) const {
    packed.rows.erase(
        std::remove_if(packed.rows.begin(), packed.rows.end(), [&](const PredictionRow& row) { return hard_index(row) < 0; }),
        packed.rows.end());
  }

  // R(t) = ℓ_t - ℓ_teacher(t_ref) - λ (t - t_ref)
  static double reward(const HardToken& h, int loop, double logprob) {
    return logprob - h.reference_logprob - h.price * double(loop - h.reference_loop);
  }

  void* zeroed_d_hidden(const PackedBatch& packed) {
    const size_t bytes = size_t(loops_ * packed.tokens() * D()) * real();
    Buffer& d_hidden = workspace().get("loss.d_hidden", bytes);
    d_hidden.zero(bytes);
    return d_hidden.as<>();
  }
  // to [elements] += from, both real
  void add(void* to, const void* from, int64_t elements) {
    const int64_t stride = 1;
    student_.device->run(&LoopBackend::binary, "add", student_.real(), LOOP_ADD, 1, &elements, static_cast<const void*>(to),
                         &stride, from, &stride, to);
  }

  // L_rep = -Σ_k w_k ℓ_k with w_k = p_k (1 + ReLU(z_k R(k))) detached, and L_ent = -H(p).
  void clean_pass(const PackedBatch& packed, const Buffer& first, const Buffer& d_first) {
    Stack stack = this->stack(student_, packed, loops_, keep(), nullptr, shares_first());
    if (shares_first()) stack.forward_after_first(first.as<>(), 1);
    else stack.forward_tokens();
    const ExitTable exits = exit_table(student_, stack, packed, loops_);
    const size_t R = packed.rows.size(), T = size_t(loops_);
    const HeadRows head = head_rows(student_, stack, packed, all_loops(loops_), 1);
    Buffer& out = workspace().get("loss.logprobs", T * R * real());
    head_forward(student_, head, out.as<>(), nullptr);
    const std::vector<double> logprobs = download_reals(out, student_.dt, T * R);

    std::vector<double> coefficients(T * R), d_pdf(T * R);
    for (size_t r = 0; r < R; r++) {
      HardToken& h = hard_[r];
      std::vector<double> rewards;
      for (size_t t = 0; t < T; t++) {
        h.clean.push_back(logprobs[t * R + r]);
        rewards.push_back(reward(h, int(t), logprobs[t * R + r]));
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
    LoopLoss loss{};
    loss.surrogate = LOOP_GIVEN;
    loss.scale = device_reals(student_, "loss.scale", coefficients);
    void* d_hidden = zeroed_d_hidden(packed);
    head_backward(student_, head, loss, nullptr, nullptr, d_hidden);
    exit_backward(student_, stack, packed, exits, d_pdf, d_hidden);
    stack.backward(student_.gradients(), d_hidden);
    if (shares_first()) add(d_first.as<>(), d_hidden, packed.tokens() * D());
  }

  // Some rollouts of some sequences side by side. A row of rollout g is a row of `one`, g after g.
  struct Rollouts {
    const PackedBatch& one;  // the sequences, once
    int begin, end;
    PackedBatch packed;
    LatentNoise noise;
    size_t hard(size_t row) const { return row % one.rows.size(); }
    int rollout(size_t row) const { return begin + int(row / one.rows.size()); }
  };
  Rollouts lay_out(const PackedBatch& one, int begin, int end) {
    Rollouts out{one, begin, end, repeat(one, end - begin), {}};
    out.noise = latent_noise(out);
    return out;
  }
  bool from_first() const { return shares_first() && o_.noise_site == NoiseSite::state; }
  void forward(Stack& stack, const Rollouts& of, const void* first) {
    if (from_first()) stack.forward_after_first(first, of.end - of.begin);
    else stack.forward_tokens();
  }

  // L_PG = -mean_g A_g log p(t_g) and L_KL = mean (e^δ - δ - 1).  first, d_first: the states after the first loop and their
  // gradient, [tokens of `one`, D].
  void rollouts(const PackedBatch& one, const void* first, void* d_first) {
    const int G = o_.rollouts, fitting = int(std::clamp<int64_t>(budget_ / one.tokens(), 1, G)),
              parts = (G + fitting - 1) / fitting;
    const size_t R = one.rows.size();
    std::vector<int> left(size_t(G) * R);  // rollout by rollout
    std::vector<double> rewards(size_t(G) * R);
    // Whatever is run last is still there for its backward.
    for (int part = 0; part < parts; part++) {
      const Rollouts of = lay_out(one, G * part / parts, G * (part + 1) / parts);
      const bool last = part + 1 == parts;
      Stack stack = this->stack(student_, of.packed, loops_, last ? keep() : Stack::Keep::nothing, &of.noise, from_first());
      forward(stack, of, first);
      const ExitTable exits = exit_table(student_, stack, of.packed, loops_);
      earn(of, stack, exits, &left[size_t(of.begin) * R], &rewards[size_t(of.begin) * R]);
      if (!last) continue;
      const std::vector<double> advantages = compare(one, left, rewards);
      learn(of, stack, exits, left, advantages, d_first);
      for (int again = 0; again + 1 < parts; again++)
        learn_again(lay_out(one, G * again / parts, G * (again + 1) / parts), left, advantages, first, d_first);
    }
  }
  void learn_again(const Rollouts& of, const std::vector<int>& left, const std::vector<double>& advantages, const void* first,
                   void* d_first) {
    Stack stack = this->stack(student_, of.packed, loops_, keep(), &of.noise, from_first());
    forward(stack, of, first);
    learn(of, stack, exit_table(student_, stack, of.packed, loops_), left, advantages, d_first);
  }

  // Draws the exits and finds the rewards of some rollouts.
  void earn(const Rollouts& of, const Stack& stack, const ExitTable& exits, int* left, double* rewards) {
    const size_t rows = of.packed.rows.size();
    std::vector<int32_t> index, targets;
    for (size_t r = 0; r < rows; r++) {
      const PredictionRow& row = of.packed.rows[r];
      left[r] = exit_of(row, of.rollout(r), exits, r);
      index.push_back(int32_t(left[r] * of.packed.tokens() + row.token));
      targets.push_back(row.target);
    }
    std::vector<double> logprobs;
    if (!o_.clean_rewards) {
      const HeadRows head{int64_t(rows),
                          stack.hidden(),
                          upload_ints(workspace(), "head.index", index),
                          upload_ints(workspace(), "head.targets", targets),
                          1,
                          student_.weights().head};
      Buffer& out = workspace().get("loss.logprobs", rows * real());
      head_forward(student_, head, out.as<>(), nullptr);
      logprobs = download_reals(out, student_.dt, rows);
    }
    for (size_t r = 0; r < rows; r++) {
      const HardToken& h = hard_[size_t(hard_index(of.packed.rows[r]))];
      rewards[r] = reward(h, left[r], o_.clean_rewards ? h.clean[size_t(left[r])] : logprobs[r]);
    }
  }

  // Advantages: z-scores over the G rollouts of each token.
  std::vector<double> compare(const PackedBatch& one, const std::vector<int>& left, const std::vector<double>& rewards) {
    const size_t R = one.rows.size(), G = size_t(o_.rollouts);
    std::vector<double> advantages(G * R);
    for (size_t r = 0; r < R; r++) {
      std::vector<double> of_token;
      for (size_t g = 0; g < G; g++) of_token.push_back(rewards[g * R + r]);
      const Statistics s = statistics(of_token);
      totals_.reward += s.mean / count_;
      totals_.reward_std += s.deviation / count_;
      for (size_t g = 0; g < G; g++) {
        advantages[g * R + r] = (of_token[g] - s.mean) / (s.deviation + DEVIATION_EPSILON);
        totals_.exit_loop += double(left[g * R + r] + 1) / (double(G) * count_);
      }
    }
    return advantages;
  }

  // The backward of some rollouts that were just run; left and advantages are those of all rollouts.
  void learn(const Rollouts& of, Stack& stack, const ExitTable& exits, const std::vector<int>& left,
             const std::vector<double>& advantages, void* d_first) {
    const size_t rows = of.packed.rows.size(), from = size_t(of.begin) * of.one.rows.size();
    const double share = 1 / (double(o_.rollouts) * count_);
    void* d_hidden = zeroed_d_hidden(of.packed);
    if (o_.kl != 0) stay_near_teacher(of, stack, exits, share, d_hidden);
    std::vector<double> d_pdf(exits.pdf.size(), 0.0);
    for (size_t r = 0; r < rows; r++) {
      const size_t at = size_t(left[from + r]) * rows + r;
      totals_.policy_loss -= advantages[from + r] * exits.log_pdf[at] * share;
      d_pdf[at] = -o_.policy * advantages[from + r] * share / std::max(exits.pdf[at], 1e-30);
    }
    exit_backward(student_, stack, of.packed, exits, d_pdf, d_hidden);
    stack.backward(student_.gradients(), d_hidden);
    if (!from_first()) return;
    const int64_t elements = of.one.tokens() * D();
    for (int i = 0; i < of.end - of.begin; i++)
      add(d_first, static_cast<char*>(d_hidden) + size_t(i * elements) * real(), elements);
  }

  // Every row's share of the KL is known before the head runs, so one pass gives log-probabilities and gradient.
  void stay_near_teacher(const Rollouts& of, const Stack& stack, const ExitTable& exits, double share, void* d_hidden) {
    const bool last = o_.kl_reduction == KlReduction::last;
    const std::vector<int> loops = last ? std::vector<int>{loops_ - 1} : all_loops(loops_);
    const size_t rows = of.packed.rows.size(), count = loops.size() * rows;
    std::vector<double> zeros(count, 0.0), teacher, weight, kl_scale;
    for (int t : loops)
      for (size_t r = 0; r < rows; r++) {
        teacher.push_back(hard_[size_t(hard_index(of.packed.rows[r]))].teacher[size_t(t)]);
        weight.push_back(last                                       ? share
                         : o_.kl_reduction == KlReduction::weighted ? share * exits.pdf[size_t(t) * rows + r]
                                                                    : share / loops_);
        kl_scale.push_back(o_.kl * weight.back());
      }
    LoopLoss loss{};
    loss.surrogate = LOOP_REINFORCE;
    loss.scale = loss.advantage = device_reals(student_, "loss.scale", zeros);
    loss.reference_logprob = device_reals(student_, "loss.reference", teacher);
    loss.kl_scale = device_reals(student_, "loss.kl_scale", kl_scale);
    Buffer& out = workspace().get("loss.logprobs", count * real());
    head_backward(student_, head_rows(student_, stack, of.packed, loops, 1), loss, out.as<>(), nullptr, d_hidden);
    const std::vector<double> logprobs = download_reals(out, student_.dt, count);
    for (size_t i = 0; i < count; i++) {
      const double d = teacher[i] - logprobs[i];
      totals_.kl += (std::exp(d) - d - 1) * weight[i];
    }
  }

  // The stream of a rollout in the counter-based generator.
  int32_t stream_of(size_t sequence, int rollout) const {
    return int32_t(batch_.ids[sequence] * uint32_t(o_.rollouts) + uint32_t(rollout));
  }

  LatentNoise latent_noise(const Rollouts& of) {
    const int64_t n = of.one.tokens(), N = of.packed.tokens();
    const int copies = of.end - of.begin;
    if (!batch_.noise.empty()) return given_noise(of);
    // A pair shares its stream and differs in the sign.
    std::vector<int32_t> streams(size_t(N), 0);
    std::vector<double> sigma(o_.antithetic ? size_t(copies) : 1, o_.sigma);
    for (int c = 0; c < copies; c++) {
      const int g = of.begin + c;
      if (o_.antithetic && g % 2 == 1) sigma[size_t(c)] = -o_.sigma;
      for (size_t i = of.one.begin; i < of.one.end; i++)
        std::fill_n(streams.begin() + c * n + of.one.first_token[i - of.one.begin], s_.length(i) - 1,
                    stream_of(i, o_.antithetic ? g - g % 2 : g));
    }
    return {o_.noise_site, nullptr, sigma, o_.seed, upload_ints(workspace(), "noise.streams", streams)};
  }
  LatentNoise given_noise(const Rollouts& of) {
    const int64_t n = of.one.tokens(), N = of.packed.tokens();
    std::vector<double> noise(size_t(loops_ * N * D()), 0.0);
    for (int g = of.begin; g < of.end; g++)
      for (size_t i = of.one.begin; i < of.one.end; i++)
        for (int t = 0; t < loops_; t++) {  // the last token predicts nothing and is not run
          const int64_t from = noise_at_[i] + (g * loops_ + t) * s_.length(i) * D(),
                        to = t * N + (g - of.begin) * n + of.one.first_token[i - of.one.begin];
          std::copy_n(batch_.noise.begin() + from, (s_.length(i) - 1) * D(), noise.begin() + to * D());
        }
    Buffer& given = workspace().get("noise.given", noise.size() * loop_dtype_size(student_.dt));
    if (student_.dt == LOOP_BF16) {
      std::vector<uint16_t> bits;
      for (double x : noise) bits.push_back(float_to_bf16(float(x)));
      given.upload(bits.data(), bits.size() * 2);
    } else {
      upload_reals(given, student_.dt, noise.data(), noise.size());
    }
    return {o_.noise_site, given.as<>(), {}, 0, nullptr};
  }

  int exit_of(const PredictionRow& row, int rollout, const ExitTable& exits, size_t r) const {
    const size_t sequence = size_t(row.sequence);
    if (!batch_.exits.empty())
      return batch_.exits[size_t(exits_at_[sequence] + rollout * (s_.length(sequence) - 1) + row.position)];
    const double u = uniform(o_.seed, uint32_t(stream_of(sequence, rollout)), uint32_t(row.position), REPLAY_EXIT_STREAM);
    double cdf = 0;
    for (int t = 0; t + 1 < loops_; t++) {
      cdf += exits.pdf[size_t(t) * size_t(exits.rows) + r];
      if (u < cdf) return t;
    }
    return loops_ - 1;
  }

  Model &student_, &teacher_;
  const LoopRptBatch& batch_;
  const Sequences& s_;
  const LoopRptOptions& o_;
  const int loops_;
  const int64_t budget_;
  double count_ = 0;                          // hard tokens of the batch
  std::vector<int64_t> noise_at_, exits_at_;  // per sequence: where its given draws begin
  int64_t noise_end_ = 0, exits_end_ = 0;
  // Of the chunk: its first sequence; its hard tokens in order of the rows; per sequence and prediction the place there, or -1.
  size_t begin_ = 0;
  std::vector<HardToken> hard_;
  std::vector<std::vector<int64_t>> index_;
  LoopRptMetrics totals_;
};

}  // namespace

LoopRptMetrics accumulate_looprpt(Model& student, Model& teacher, const LoopRptBatch& batch, const LoopRptOptions& options) {
  const Remedy remedy(*student.device, training_remedy(options.recompute));
  return LoopRptPass(student, teacher, batch, options).run();
}

double accumulate_stage2(Model& model, const Sequences& sequences, int64_t tokens_per_micro_batch) {
  constexpr double SLOPE = 50, MARGIN = 0.005;
  const Remedy remedy(*model.device, training_remedy(Recompute::layer));
  check_sequences(model, sequences, "stage 2");
  const int loops = model.config.loops;
  if (model.adapter()) throw Error("INVALID_ARGUMENT", "stage 2", "Stage II trains the gate, which an adapter leaves frozen");
  require_exit_gate(model, "stage 2", "Stage II");
  if (loops < 2) throw Error("INVALID_ARGUMENT", "stage 2", "the gate chooses between loops: the model needs at least two");
  double rows_in_all = 0, total = 0;
  for (size_t i = 0; i < sequences.count(); i++) rows_in_all += double(sequences.length(i) - sequences.prompt(i));
  model.gradients();
  Workspace& w = model.workspace();
  const size_t real = loop_dtype_size(model.real());
  const int64_t budget = tokens_per_micro_batch > 0 ? tokens_per_micro_batch : default_budget(model, loops);
  for (size_t begin = 0; begin < sequences.count();) {
    PackedBatch packed = pack(sequences, begin, {budget, true, true, false});
    begin = packed.end;
    const size_t R = packed.rows.size(), N = size_t(packed.tokens()), T = size_t(loops);
    if (R == 0) continue;
    Stack stack(model, model.weights(), device_batch(model, sequences, packed), loops, Stack::Keep::nothing);
    stack.forward_tokens();
    Buffer &all_gates = w.get("exit.all_gates", T * N * real), &logprobs_out = w.get("loss.logprobs", T * R * real);
    stack.gate_logits(all_gates.as<>());
    head_forward(model, head_rows(model, stack, packed, all_loops(loops), 1), logprobs_out.as<>(), nullptr);
    const std::vector<double> gates = download_reals(all_gates, model.dt, T * N),
                              logprobs = download_reals(logprobs_out, model.dt, T * R);
    std::vector<double> d_gates(T * N, 0.0);
    for (size_t t = 1; t < T; t++)
      for (size_t r = 0; r < R; r++) {
        const size_t at = t * N + size_t(packed.rows[r].token);
        const double gain = std::max(0.0, logprobs[t * R + r] - logprobs[(t - 1) * R + r]),
                     share = 1 / (double(loops) * rows_in_all);
        const double target = 1 / (1 + std::exp(-SLOPE * (gain - MARGIN))), a = gates[at];
        const double softplus = std::log1p(std::exp(-std::abs(a))), log_leave = std::min(a, 0.0) - softplus,
                     log_stay = std::min(-a, 0.0) - softplus;
        total -= share * (target * log_stay + (1 - target) * log_leave);
        d_gates[at] += share * (target - std::exp(log_stay));  // λ - (1 - target)
      }
    const size_t states = T * N * size_t(model.config.hidden) * real;
    Buffer& unused = w.get("loss.d_hidden", states);  // the trunk is frozen
    unused.zero(states);
    gate_backward(model, stack, int64_t(T * N), device_reals(model, "exit.d_gates", d_gates), unused.as<>());
  }
  return total;
}

MovingAverage::MovingAverage(std::shared_ptr<Model> teacher, std::shared_ptr<Model> student)
    : teacher_(std::move(teacher)), student_(std::move(student)) {
  check();
  if (teacher_->dt != LOOP_BF16) return;
  average_ = Buffer(teacher_->device, teacher_->trained_elements() * loop_dtype_size(teacher_->real()));
  for (auto& p : teacher_->trained()) {
    const std::vector<double> values = teacher_->read(p);
    upload_reals(average_, teacher_->dt, values.data(), values.size(), p.offset);
  }
}

void MovingAverage::check() const {
  if (teacher_->device != student_->device || teacher_->dt != student_->dt || teacher_->config != student_->config ||
      !teacher_->same_adapter(*student_))
    throw Error("INVALID_ARGUMENT", "moving average",
                "the teacher must have the student's configuration, device, dtype and adapter");
}

void* MovingAverage::average(const Parameter& p) const {
  return average_ ? average_.at(p.offset * loop_dtype_size(teacher_->real())) : teacher_->writable_data(p);
}

void MovingAverage::update(double decay) {
  check();
  for (auto& p : student_->trained())
    teacher_->device->run(&LoopBackend::moving_average, "moving average", teacher_->dt, int64_t(p.count), 1 - decay,
                          student_->parameter_data(p), average(p),
                          average_ ? teacher_->writable_data(p) : static_cast<void*>(nullptr));
  teacher_->touch();
}

void MovingAverage::save(const std::string& path) const {
  const size_t size = loop_dtype_size(teacher_->real());
  std::vector<SafetensorsOutput> tensors;
  for (const Parameter& p : teacher_->trained())
    tensors.push_back({"average." + p.name, safetensors_dtype(teacher_->real()), p.shape, [this, &p, size](uint8_t* out) {
                         teacher_->device->run(&LoopBackend::copy_out, "copy_out", static_cast<void*>(out),
                                               static_cast<const void*>(average(p)), p.count * size);
                       }});
  write_safetensors(path, tensors, {});
}

void MovingAverage::load(const std::string& path) {
  const SafetensorsFile file(path);
  for (const Parameter& p : teacher_->trained()) {
    const auto found = file.tensors().find("average." + p.name);
    if (found == file.tensors().end()) refuse_tensor(path, "average." + p.name, "is missing");
    if (found->second.dtype != safetensors_dtype(teacher_->real()) || found->second.shape != p.shape)
      refuse_tensor(path, "average." + p.name, "has another dtype or shape than the model's");
    const auto* values = static_cast<const uint8_t*>(found->second.data);
    bool finite = first_not_finite(teacher_->real(), values, p.count) == p.count;
    for (size_t i = 0; average_ && i < p.count; i++) {  // the largest float32 numbers are infinite in bfloat16
      float value;
      std::memcpy(&value, values + i * sizeof value, sizeof value);
      finite &= std::isfinite(bf16_to_float(float_to_bf16(value)));
    }
    if (!finite) refuse_tensor(path, "average." + p.name, "has a value that is not finite");
    check_checksum(path, "average." + p.name, found->second);
  }
  if (file.tensors().size() != teacher_->trained().size()) refuse_file(path, "it holds tensors that are not this model's");
  const Uninterrupted uninterrupted(*teacher_->device);
  for (const Parameter& p : teacher_->trained()) {
    const SafetensorsEntry& entry = file.tensors().at("average." + p.name);
    teacher_->device->run(&LoopBackend::copy_in, "copy_in", average(p), entry.data, entry.bytes);
    if (!average_) continue;
    std::vector<double> values = download_reals(average_, teacher_->dt, p.count, p.offset);
    teacher_->write(p, values.data());
  }
  teacher_->touch();
}

}  // namespace looplm
