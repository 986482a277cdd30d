#include "looprpt.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "half.h"
#include "pass.h"
#include "philox.h"
#include "safetensors.h"

namespace looplm {

namespace {

constexpr double STD_EPSILON = 1e-8;
constexpr uint32_t EXIT_STREAM = 3;  // of uniform(): 0 is sampling's

// A prediction that counts: one of the hard tokens of its sequence, with what the teacher says of it.
struct HardToken {
  int32_t sequence, position;
  int reference_loop;  // t_ref, 0-based
  double reference_logprob, price;
  std::vector<double> teacher;  // ℓ of every loop
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
  }

  LoopRptMetrics run() {
    choose();
    if (hard_.empty()) throw Error("INVALID_ARGUMENT", "looprpt", "no sequence has a token after its prompt");
    student_.gradients();
    totals_.loop_logprob.assign(size_t(loops_), 0.0);
    totals_.loop_weight.assign(size_t(loops_), 0.0);
    totals_.loop_exit.assign(size_t(loops_), 0.0);
    clean_pass();
    noisy_pass();
    totals_.tokens = count();
    totals_.loss = o_.policy * totals_.policy_loss + o_.representation * totals_.representation_loss +
                   o_.entropy * totals_.entropy_loss + o_.kl * totals_.kl;
    return totals_;
  }

 private:
  double count() const { return double(hard_.size()); }

  void check() const {
    check_sequences(student_, s_, "looprpt");
    auto require = [](bool ok, const char* what) {
      if (!ok) throw Error("INVALID_ARGUMENT", "looprpt", what);
    };
    require(teacher_.device == student_.device && teacher_.dt == student_.dt &&
                teacher_.arena_elements() == student_.arena_elements() &&
                teacher_.config.vocabulary == student_.config.vocabulary,
            "the teacher must have the student's configuration, device and dtype");
    require(loops_ >= 2, "LoopRPT compares loops: the model needs at least two");
    require(o_.rollouts >= 2, "rollouts must be at least 2: advantages compare the rollouts of a token");
    require(o_.rho > 0 && o_.rho <= 1, "rho must be in (0, 1]");
    require(batch_.ids.size() == s_.count(), "a batch needs one id per sequence");
    int64_t noise = 0, exits = 0;
    for (size_t i = 0; i < s_.count(); i++) {
      noise += o_.rollouts * loops_ * s_.length(i) * student_.config.hidden;
      exits += o_.rollouts * (s_.length(i) - 1);
    }
    require(batch_.noise.empty() || int64_t(batch_.noise.size()) == noise,
            "noise must hold rollouts × loops × len × hidden_size values per sequence");
    require(batch_.exits.empty() || int64_t(batch_.exits.size()) == exits,
            "exits must hold rollouts × (len-1) values per sequence");
    require(std::all_of(batch_.exits.begin(), batch_.exits.end(), [&](int32_t t) { return t >= 0 && t < loops_; }),
            "exits are loops counted from 0");
  }

  // The hard tokens: of each sequence the ceil(rho·n) predictions of highest teacher entropy at the last loop, the earlier one of
  // equals.
  void choose() {
    ScoreOptions scoring;
    scoring.loops = loops_;
    scoring.responses_only = true;
    const Scores t = score(teacher_, s_, scoring);
    int64_t prediction = 0, token = 0;
    for (size_t i = 0; i < s_.count(); i++) {
      const int64_t width = s_.length(i) - 1, length = s_.length(i);
      index_.emplace_back(size_t(width), -1);
      auto at = [&](const std::vector<double>& values, int loop, int64_t j) {
        return values[size_t(prediction + loop * width + j)];
      };
      std::vector<int32_t> order;
      for (int64_t j = s_.prompt(i) - 1; j < width; j++) order.push_back(int32_t(j));
      const size_t keep = size_t(std::ceil(o_.rho * double(order.size())));
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return at(t.entropy, loops_ - 1, a) > at(t.entropy, loops_ - 1, b); });
      order.resize(keep);
      std::sort(order.begin(), order.end());
      for (int32_t j : order) {
        HardToken h{int32_t(i), j, loops_ - 1, 0, 0, {}};
        double cdf = 0;
        for (int k = loops_ - 1; k >= 0; k--) h.teacher.insert(h.teacher.begin(), at(t.logprobs, k, j));
        for (int k = 0; k < loops_ - 1; k++) {
          cdf += t.exit_pdf[size_t(token + k * length + j)];
          if (cdf >= o_.tau) {
            h.reference_loop = k;
            break;
          }
        }
        h.reference_logprob = h.teacher[size_t(h.reference_loop)];
        const double share = at(t.entropy, loops_ - 1, j) / std::log(double(student_.config.vocabulary));
        h.price = o_.lambda_base * (1 + o_.lambda_scale * (1 - std::clamp(share, 0.0, 1.0)));
        index_.back()[size_t(j)] = int64_t(hard_.size());
        hard_.push_back(std::move(h));
      }
      prediction += loops_ * width;
      token += loops_ * length;
    }
    for (const HardToken& h : hard_) totals_.reference_loop += double(h.reference_loop + 1) / count();
  }

  // R(t) = ℓ_t - ℓ_teacher(t_ref) - λ (t - t_ref)
  static double reward(const HardToken& h, int loop, double logprob) {
    return logprob - h.reference_logprob - h.price * double(loop - h.reference_loop);
  }

  // Leaves the rows of hard tokens alone. copies: sequence i of the batch is sequence i / copies of ours.
  void keep_hard_rows(PackedBatch& packed, size_t first, int copies) const {
    auto hard = [&](const PredictionRow& row) {
      return index_[first + size_t(row.sequence / copies)][size_t(row.position)] >= 0;
    };
    packed.rows.erase(
        std::remove_if(packed.rows.begin(), packed.rows.end(), [&](const PredictionRow& row) { return !hard(row); }),
        packed.rows.end());
  }

  struct Buffers {
    Buffer &logprobs, &d_hidden;
  };
  Buffers buffers(const PackedBatch& packed) {
    const size_t real = loop_dtype_size(student_.real()),
                 states = size_t(loops_ * packed.tokens() * student_.config.hidden) * real;
    Buffer& d_hidden = student_.workspace().get("loss.d_hidden", states);
    d_hidden.zero(states);
    return {student_.workspace().get("loss.logprobs", size_t(loops_) * packed.rows.size() * real), d_hidden};
  }
  Stack stack(const PackedBatch& packed, const LatentNoise* noise) {
    Workspace& w = student_.workspace();
    return Stack(student_.device, student_.dt, student_.config, student_.weights(), w,
                 student_.rope_table(packed.max_position + 1), upload(packed, w), loops_, keep_for(o_.recompute), nullptr, noise);
  }

  // L_rep = -Σ_k w_k ℓ_k with w_k = p_k (1 + ReLU(z_k R(k))) detached, and L_ent = -H(p).
  void clean_pass() {
    for (size_t begin = 0; begin < s_.count();) {
      PackedBatch packed = pack(s_, begin, {budget_, true, true, false});
      keep_hard_rows(packed, 0, 1);
      if (!packed.rows.empty()) clean_micro_batch(packed);
      begin = packed.end;
    }
  }
  void clean_micro_batch(const PackedBatch& packed) {
    Stack stack = this->stack(packed, nullptr);
    stack.forward_tokens();
    const ExitTable exits = exit_table(student_, stack, packed, loops_);
    const size_t R = packed.rows.size(), T = size_t(loops_);
    const HeadRows head = head_rows(student_, stack, packed, all_loops(loops_), 1);
    const Buffers b = buffers(packed);
    head_forward(student_, head, b.logprobs.as<>(), nullptr);
    const std::vector<double> logprobs = download_reals(b.logprobs, student_.dt, T * R);

    std::vector<double> coefficients(T * R), d_pdf(T * R);
    for (size_t r = 0; r < R; r++) {
      const HardToken& h = hard_[size_t(index_[size_t(packed.rows[r].sequence)][size_t(packed.rows[r].position)])];
      std::vector<double> rewards;
      for (size_t t = 0; t < T; t++) rewards.push_back(reward(h, int(t), logprobs[t * R + r]));
      const Statistics s = statistics(rewards);
      for (size_t t = 0; t < T; t++) {
        const double p = exits.pdf[t * R + r], log_p = exits.log_pdf[t * R + r], l = logprobs[t * R + r];
        const double w = p * (1 + std::max(0.0, (rewards[t] - s.mean) / (s.deviation + STD_EPSILON)));
        coefficients[t * R + r] = -o_.representation * w / count();
        d_pdf[t * R + r] = o_.entropy * (log_p + 1) / count();
        totals_.representation_loss -= w * l / count();
        totals_.entropy_loss += (p > 0 ? p * log_p : 0) / count();
        totals_.mean_loop += double(t + 1) * p / count();
        totals_.loop_logprob[t] += l / count();
        totals_.loop_weight[t] += w / count();
        totals_.loop_exit[t] += p / count();
      }
    }
    LoopLoss loss{};
    loss.surrogate = LOOP_GIVEN;
    loss.scale = device_reals(student_, "loss.scale", coefficients);
    head_backward(student_, head, loss, nullptr, nullptr, b.d_hidden.as<>());
    exit_backward(student_, stack, packed, exits, d_pdf, b.d_hidden.as<>());
    stack.backward(student_.gradients(), b.d_hidden.as<>());
  }

  // G noisy rollouts of whole sequences side by side: L_PG = -mean_g A_g log p(t_g) and L_KL = mean (e^δ - δ - 1).
  void noisy_pass() {
    for (size_t begin = 0; begin < s_.count();) {
      Sequences copies;
      copies.offsets.push_back(0);
      size_t end = begin;
      for (; end < s_.count(); end++) {
        const int64_t tokens = o_.rollouts * (s_.length(end) - 1);
        if (end > begin && int64_t(copies.tokens.size()) + tokens > budget_) break;
        for (int g = 0; g < o_.rollouts; g++) {
          copies.tokens.insert(copies.tokens.end(), s_.tokens.begin() + s_.offsets[end], s_.tokens.begin() + s_.offsets[end + 1]);
          copies.offsets.push_back(int64_t(copies.tokens.size()));
          copies.prompt_lengths.push_back(int32_t(s_.prompt(end)));
        }
      }
      PackedBatch packed = pack(copies, 0, {int64_t(copies.tokens.size()), false, true, false});
      keep_hard_rows(packed, begin, o_.rollouts);
      if (!packed.rows.empty()) noisy_micro_batch(packed, begin, end);
      begin = end;
    }
  }

  // The stream of a rollout in the counter-based generator.
  int32_t stream_of(size_t sequence, int rollout) const {
    return int32_t(batch_.ids[sequence] * uint32_t(o_.rollouts) + uint32_t(rollout));
  }

  LatentNoise latent_noise_of(const PackedBatch& packed, size_t begin, size_t end) {
    Workspace& w = student_.workspace();
    const int64_t N = packed.tokens(), D = student_.config.hidden;
    if (batch_.noise.empty()) {
      std::vector<int32_t> streams(size_t(N), 0);
      size_t copy = 0;
      for (size_t i = begin; i < end; i++)
        for (int g = 0; g < o_.rollouts; g++, copy++)
          for (int64_t j = 0; j < s_.length(i) - 1; j++) streams[size_t(packed.first_token[copy] + j)] = stream_of(i, g);
      return {nullptr, o_.sigma, o_.seed, upload_ints(w, "noise.streams", streams)};
    }
    std::vector<double> noise(size_t(loops_ * N * D), 0.0);
    size_t from = 0;
    for (size_t i = 0; i < begin; i++) from += size_t(o_.rollouts * loops_ * s_.length(i) * D);
    size_t copy = 0;
    for (size_t i = begin; i < end; i++)
      for (int g = 0; g < o_.rollouts; g++, copy++)
        for (int t = 0; t < loops_; t++)
          for (int64_t j = 0; j < s_.length(i); j++, from += size_t(D)) {
            if (j + 1 == s_.length(i)) continue;  // the last token predicts nothing and is not run
            const size_t to = size_t((t * N + packed.first_token[copy] + j) * D);
            std::copy_n(batch_.noise.begin() + int64_t(from), D, noise.begin() + int64_t(to));
          }
    Buffer& given = w.get("noise.given", noise.size() * loop_dtype_size(student_.dt));
    if (student_.dt == LOOP_BF16) {
      std::vector<uint16_t> bits;
      for (double x : noise) bits.push_back(float_to_bf16(float(x)));
      given.upload(bits.data(), bits.size() * 2);
    } else {
      upload_reals(given, student_.dt, noise.data(), noise.size());
    }
    return {given.as<>(), 0, 0, nullptr};
  }

  int exit_of(const PredictionRow& row, size_t sequence, int rollout, const ExitTable& exits, size_t r) const {
    const size_t R = size_t(exits.rows);
    if (!batch_.exits.empty()) {
      size_t from = 0;
      for (size_t i = 0; i < sequence; i++) from += size_t(o_.rollouts * (s_.length(i) - 1));
      return batch_.exits[from + size_t(rollout * (s_.length(sequence) - 1) + row.position)];
    }
    const double u = uniform(o_.seed, uint32_t(stream_of(sequence, rollout)), uint32_t(row.position), EXIT_STREAM);
    double cdf = 0;
    for (int t = 0; t + 1 < loops_; t++) {
      cdf += exits.pdf[size_t(t) * R + r];
      if (u < cdf) return t;
    }
    return loops_ - 1;
  }

  void noisy_micro_batch(const PackedBatch& packed, size_t begin, size_t end) {
    const LatentNoise noise = latent_noise_of(packed, begin, end);
    Stack stack = this->stack(packed, &noise);
    stack.forward_tokens();
    const ExitTable exits = exit_table(student_, stack, packed, loops_);
    const size_t R = packed.rows.size(), T = size_t(loops_), G = size_t(o_.rollouts);
    const HeadRows head = head_rows(student_, stack, packed, all_loops(loops_), 1);
    const Buffers b = buffers(packed);

    // Every row's share of the KL is known before the head runs, so one pass gives log-probabilities and gradient.
    std::vector<double> zeros(T * R, 0.0), teacher(T * R), kl_scale(T * R, o_.kl / (double(G * T) * count()));
    auto token_of = [&](size_t r) {
      return size_t(index_[begin + size_t(packed.rows[r].sequence) / G][size_t(packed.rows[r].position)]);
    };
    for (size_t r = 0; r < R; r++)
      for (size_t t = 0; t < T; t++) teacher[t * R + r] = hard_[token_of(r)].teacher[t];
    LoopLoss loss{};
    loss.surrogate = LOOP_REINFORCE;
    loss.scale = loss.advantage = device_reals(student_, "loss.scale", zeros);
    loss.reference_logprob = device_reals(student_, "loss.reference", teacher);
    loss.kl_scale = device_reals(student_, "loss.kl_scale", kl_scale);
    head_backward(student_, head, loss, b.logprobs.as<>(), nullptr, b.d_hidden.as<>());
    const std::vector<double> logprobs = download_reals(b.logprobs, student_.dt, T * R);
    for (size_t i = 0; i < T * R; i++) {
      const double d = teacher[i] - logprobs[i];
      totals_.kl += (std::exp(d) - d - 1) / (double(G * T) * count());
    }
    exit_backward(student_, stack, packed, exits, policy_gradient(packed, exits, logprobs, begin, token_of), b.d_hidden.as<>());
    stack.backward(student_.gradients(), b.d_hidden.as<>());
  }

  // ∂L_PG/∂p of the sampled exits, with advantages over the rollouts of each token.
  template <class TokenOf>
  std::vector<double> policy_gradient(const PackedBatch& packed, const ExitTable& exits, const std::vector<double>& logprobs,
                                      size_t begin, TokenOf token_of) {
    const size_t R = packed.rows.size(), G = size_t(o_.rollouts);
    std::vector<int> left(R);
    std::map<size_t, std::vector<std::pair<size_t, double>>> rollouts;  // hard token -> (row, reward)
    for (size_t r = 0; r < R; r++) {
      const PredictionRow& row = packed.rows[r];
      left[r] = exit_of(row, begin + size_t(row.sequence) / G, int(size_t(row.sequence) % G), exits, r);
      rollouts[token_of(r)].push_back({r, reward(hard_[token_of(r)], left[r], logprobs[size_t(left[r]) * R + r])});
    }
    std::vector<double> d_pdf(exits.pdf.size(), 0.0);
    for (auto& [token, of_token] : rollouts) {
      std::vector<double> rewards;
      for (auto& [r, value] : of_token) rewards.push_back(value);
      const Statistics s = statistics(rewards);
      totals_.reward += s.mean / count();
      totals_.reward_std += s.deviation / count();
      for (auto& [r, value] : of_token) {
        const size_t at = size_t(left[r]) * R + r;
        const double advantage = (value - s.mean) / (s.deviation + STD_EPSILON), share = 1 / (double(G) * count());
        totals_.policy_loss -= advantage * exits.log_pdf[at] * share;
        totals_.exit_loop += double(left[r] + 1) * share;
        d_pdf[at] = -o_.policy * advantage * share / std::max(exits.pdf[at], 1e-30);
      }
    }
    return d_pdf;
  }

  Model &student_, &teacher_;
  const LoopRptBatch& batch_;
  const Sequences& s_;
  const LoopRptOptions& o_;
  const int loops_;
  const int64_t budget_;
  std::vector<HardToken> hard_;
  std::vector<std::vector<int64_t>> index_;  // per sequence and prediction: place in hard_, or -1
  LoopRptMetrics totals_;
};

}  // namespace

LoopRptMetrics accumulate_looprpt(Model& student, Model& teacher, const LoopRptBatch& batch, const LoopRptOptions& options) {
  return LoopRptPass(student, teacher, batch, options).run();
}

double accumulate_stage2(Model& model, const Sequences& sequences, int64_t tokens_per_micro_batch) {
  constexpr double SLOPE = 50, MARGIN = 0.005;
  check_sequences(model, sequences, "stage 2");
  const int loops = model.config.loops;
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
    Stack stack(model.device, model.dt, model.config, model.weights(), w, model.rope_table(packed.max_position + 1),
                upload(packed, w), loops, Stack::Keep::nothing);
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
  if (teacher_->device != student_->device || teacher_->dt != student_->dt ||
      teacher_->arena_elements() != student_->arena_elements())
    throw Error("INVALID_ARGUMENT", "moving average", "the teacher must have the student's configuration, device and dtype");
  if (teacher_->dt != LOOP_BF16) return;
  average_ = Buffer(teacher_->device, teacher_->arena_elements() * loop_dtype_size(teacher_->real()));
  for (auto& p : teacher_->parameters()) {
    const std::vector<double> values = teacher_->read(p);
    upload_reals(average_, teacher_->dt, values.data(), values.size(), p.offset);
  }
}

void* MovingAverage::average(const Parameter& p) const {
  return average_ ? average_.at(p.offset * loop_dtype_size(teacher_->real())) : teacher_->parameter_data(p);
}

void MovingAverage::update(double decay) {
  for (auto& p : student_->parameters())
    teacher_->device->run(&LoopBackend::moving_average, "moving average", teacher_->dt, int64_t(p.count), 1 - decay,
                          static_cast<const void*>(student_->parameter_data(p)), average(p),
                          average_ ? teacher_->parameter_data(p) : static_cast<void*>(nullptr));
  teacher_->touch();
}

void MovingAverage::save(const std::string& path) const {
  const size_t size = loop_dtype_size(teacher_->real());
  std::vector<SafetensorsOutput> tensors;
  for (const Parameter& p : teacher_->parameters())
    tensors.push_back({"average." + p.name, safetensors_dtype(teacher_->real()), p.shape, [this, &p, size](uint8_t* out) {
                         teacher_->device->run(&LoopBackend::copy_out, "copy_out", static_cast<void*>(out),
                                               static_cast<const void*>(average(p)), p.count * size);
                       }});
  write_safetensors(path, tensors, {});
}

void MovingAverage::load(const std::string& path) {
  const SafetensorsFile file(path);
  auto refuse = [&](const std::string& what) { throw Error("INVALID_FILE", "moving average", path + ": " + what); };
  for (const Parameter& p : teacher_->parameters()) {
    const auto found = file.tensors().find("average." + p.name);
    if (found == file.tensors().end()) refuse("tensor \"average." + p.name + "\" is missing");
    if (found->second.dtype != safetensors_dtype(teacher_->real()) || found->second.shape != p.shape)
      refuse("tensor \"average." + p.name + "\" has another dtype or shape than the model's");
  }
  if (file.tensors().size() != teacher_->parameters().size()) refuse("it holds tensors that are not this model's");
  for (const Parameter& p : teacher_->parameters()) {
    const SafetensorsEntry& entry = file.tensors().at("average." + p.name);
    teacher_->device->run(&LoopBackend::copy_in, "copy_in", average(p), entry.data, entry.bytes);
    if (!average_) continue;
    std::vector<double> values = download_reals(average_, teacher_->dt, p.count, p.offset);
    teacher_->write(p, values.data());
  }
  teacher_->touch();
}

}  // namespace looplm
