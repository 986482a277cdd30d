#include "micro_batch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "pass.h"

namespace looplm {

MicroBatch::MicroBatch(Model& model, const Weights& weights, const Sequences& sequences, const PackedBatch& packed,
                       BatchPlan plan)
    : stack(model, weights, device_batch(model, sequences, packed), plan.loops, plan.keep, nullptr, plan.noise, plan.first_given),
      model_(model),
      packed_(packed),
      reads_(plan.loops.reads()),
      last_(packed.end == sequences.count()) {}

Buffer& MicroBatch::reserved(Buffer& buffer, size_t elements) const {
  buffer.reserve(model_.device, elements * real());
  return buffer;
}

// ---- Values ----

ExitTable last_loop_exits(int64_t rows, int loops) {
  const size_t before = size_t((loops - 1) * rows);
  ExitTable out{rows, loops, std::vector<double>(before, 0.0),
                std::vector<double>(before, -std::numeric_limits<double>::infinity())};
  out.pdf.resize(before + size_t(rows), 1.0);
  out.log_pdf.resize(before + size_t(rows), 0.0);
  return out;
}

// Downloads two arrays that are stored one after the other. One transfer, so the host waits once.
static std::pair<std::vector<double>, std::vector<double>> download_two(const Buffer& both, LoopDType dt, size_t count) {
  const std::vector<double> values = download_reals(both, dt, 2 * count);
  const auto middle = values.begin() + ptrdiff_t(count);
  return {{values.begin(), middle}, {middle, values.end()}};
}

void MicroBatch::run_gates(Buffer& logits) { stack.gate_logits(reserved(logits, size_t(gates())).as<>()); }

const ExitTable& MicroBatch::exits() {
  if (exits_) return *exits_;
  ExitTable out{int64_t(packed_.rows.size()), reads_, {}, {}};
  const int64_t count = reads_ * out.rows;
  if (!model_.config.exit_gate) return exits_.emplace(last_loop_exits(out.rows, reads_));
  ExitMemory& memory = model_.memory().exits;
  const int32_t* index = upload_ints(model_.device, memory.index, row_index(packed_, all_loops(reads_)));
  Buffer &rows = reserved(memory.gates, size_t(count)), &both = reserved(memory.pdf, size_t(2 * count));
  run_gates(memory.token_gates);
  model_.device->run(&LoopBackend::gather_rows, "gather gates", model_.real(), count, int64_t(1), index,
                     memory.token_gates.as<>(), rows.as<>());
  model_.device->run(&LoopBackend::exit_pdf, "exit_pdf", model_.dt, int64_t(reads_), out.rows, rows.as<>(),
                     both.at(size_t(count) * real()), both.as<>());
  std::tie(out.pdf, out.log_pdf) = download_two(both, model_.dt, size_t(count));
  return exits_.emplace(std::move(out));
}

TokenExits MicroBatch::token_exits() {
  TokenExits out;
  const size_t count = size_t(gates());
  ExitMemory& memory = model_.memory().exits;
  run_gates(memory.token_gates);
  Buffer& pdf = reserved(memory.pdf, count);
  model_.device->run(&LoopBackend::exit_pdf, "exit_pdf", model_.dt, int64_t(reads_), packed_.tokens(), memory.token_gates.as<>(),
                     nullptr, pdf.as<>());
  out.gate_logits = download_reals(memory.token_gates, model_.dt, count);
  out.pdf = download_reals(pdf, model_.dt, count);
  return out;
}

HeadRows MicroBatch::head_rows(const std::vector<int32_t>& index, const std::vector<int32_t>& targets, double temperature) const {
  HeadMemory& memory = model_.memory().head;
  return {int64_t(targets.size()),
          stack.hidden(),
          upload_ints(model_.device, memory.index, index),
          upload_ints(model_.device, memory.targets, targets),
          temperature,
          stack.weights().head};
}
HeadRows MicroBatch::rows(const std::vector<int>& reads, double temperature) const {
  std::vector<int32_t> targets;
  for (size_t k = 0; k < reads.size(); k++)
    for (const PredictionRow& row : packed_.rows) targets.push_back(row.target);
  return head_rows(row_index(packed_, reads), targets, temperature);
}
HeadRows MicroBatch::rows_at(const std::vector<int>& reads, double temperature) const {
  std::vector<int32_t> index, targets;
  for (size_t r = 0; r < packed_.rows.size(); r++) {
    index.push_back(int32_t(reads[r] * packed_.tokens() + packed_.rows[r].token));
    targets.push_back(packed_.rows[r].target);
  }
  return head_rows(index, targets, temperature);
}

TokenValues MicroBatch::values(const HeadRows& rows, bool logprobs, bool entropies) {
  const size_t count = size_t(rows.rows);
  Buffer& both = reserved(model_.memory().head.values, 2 * count);
  void* of_entropies = both.at(count * real());
  head_forward(model_, rows, logprobs ? both.as<>() : nullptr, entropies ? of_entropies : nullptr);
  TokenValues out;
  if (logprobs && entropies) std::tie(out.logprobs, out.entropies) = download_two(both, model_.dt, count);
  else if (logprobs) out.logprobs = download_reals(both, model_.dt, count);
  else if (entropies) out.entropies = download_reals(both, model_.dt, count, count);
  return out;
}

// ---- Backward ----

void* MicroBatch::d_hidden() {
  Buffer& buffer = model_.memory().d_hidden;
  const size_t elements = size_t(gates() * model_.config.hidden);
  if (!has_d_hidden_) reserved(buffer, elements).zero(elements * real());
  has_d_hidden_ = true;
  return buffer.as<>();
}

void MicroBatch::backward_head(const HeadRows& rows, const RowLoss& loss, TokenValues* values) {
  const LoopLoss on_device = upload(model_, loss);
  const size_t count = size_t(rows.rows);
  if (!values) return head_backward(model_, rows, on_device, nullptr, nullptr, d_hidden());
  Buffer& both = reserved(model_.memory().head.values, 2 * count);
  head_backward(model_, rows, on_device, both.as<>(), both.at(count * real()), d_hidden());
  std::tie(values->logprobs, values->entropies) = download_two(both, model_.dt, count);
}

// ∂L/∂a_j = c_j (1 - λ_j) - λ_j Σ_{t>j} c_t with c = ∂L/∂log p, and 0 for the unused gate of the last loop. All are [K, R].
static std::vector<double> gates_from_log_pdf(size_t rows, const std::vector<double>& gates, const std::vector<double>& c) {
  std::vector<double> out(c.size(), 0.0), later(c.end() - ptrdiff_t(rows), c.end());
  for (size_t i = c.size() - rows; i-- > 0;) {
    out[i] = c[i] / (1 + std::exp(gates[i])) - later[i % rows] / (1 + std::exp(-gates[i]));
    later[i % rows] += c[i];
  }
  return out;
}

void MicroBatch::backward_exits(const std::vector<double>& d_pdf, const std::vector<double>& d_log_pdf) {
  ExitMemory& memory = model_.memory().exits;
  Buffer &d = reserved(memory.d_pdf, d_pdf.size()), &d_rows = reserved(memory.d_gates, d_pdf.size()),
         &d_tokens = reserved(memory.d_token_gates, size_t(gates()));
  upload_reals(d, model_.dt, d_pdf.data(), d_pdf.size());
  d_tokens.zero(size_t(gates()) * real());
  model_.device->run(&LoopBackend::exit_pdf_backward, "exit_pdf backward", model_.dt, int64_t(reads_), exits().rows,
                     memory.gates.as<>(), d.as<>(), d_rows.as<>());
  const auto add_to_tokens = [&] {
    model_.device->run(&LoopBackend::scatter_add_rows, "scatter gates", model_.dt, int64_t(d_pdf.size()), int64_t(1),
                       static_cast<const int32_t*>(memory.index.as<int32_t>()), d_rows.as<>(), d_tokens.as<>());
  };
  add_to_tokens();
  if (!d_log_pdf.empty()) {
    const std::vector<double> gates = download_reals(memory.gates, model_.dt, d_log_pdf.size());
    const std::vector<double> d_gates = gates_from_log_pdf(size_t(exits().rows), gates, d_log_pdf);
    upload_reals(d_rows, model_.dt, d_gates.data(), d_gates.size());
    add_to_tokens();
  }
  backward_gates(d_tokens);
}

void MicroBatch::backward_gates(const std::vector<double>& d_gate_logits) {
  Buffer& d = reserved(model_.memory().exits.d_token_gates, d_gate_logits.size());
  upload_reals(d, model_.dt, d_gate_logits.data(), d_gate_logits.size());
  backward_gates(d);
}

void MicroBatch::backward_gates(const Buffer& d) {
  const Weights &w = model_.weights(), &g = model_.gradients();
  model_.device->run(&LoopBackend::gate_backward, "gate backward", model_.dt, gates(), model_.config.hidden, d.as<>(),
                     stack.hidden(), w.gate_weight, d_hidden(), g.gate_weight, g.gate_bias);
}

void MicroBatch::backward(const GradientsFinal& final) {
  stack.backward(model_.gradients(), d_hidden(), last_ ? final : GradientsFinal{});
}

}  // namespace looplm
