#include "exit_meter.h"

#include <algorithm>
#include <cmath>

namespace looplm {

namespace {

void decide(HeadRow& row) { row.exits = exits(row.exit_options(), row.loop, row.measures, row.exit); }

}  // namespace

// ---- States and gates

void ExitMeter::apply_states(std::vector<HeadRow>& rows, const void* after, const void* before) {
  const auto asks = [](const HeadRow& row) {
    return row.needs(exit_needs::states) && row.loop >= first_exit(row.exit_options());
  };
  if (std::none_of(rows.begin(), rows.end(), asks)) return;
  std::vector<double> compared(4 * rows.size());
  g_.model.device->run(&LoopBackend::compare_rows, "compare states", g_.model.dt, int64_t(rows.size()), g_.architecture().hidden,
                       after, before, compared.data());
  for (size_t i = 0; i < rows.size(); i++) {
    if (!asks(rows[i])) continue;
    ExitMeasures& m = rows[i].measures;
    m.difference = std::sqrt(compared[4 * i]), m.norm = std::sqrt(compared[4 * i + 1]);
    m.product = compared[4 * i + 2], m.previous_norm = std::sqrt(compared[4 * i + 3]);
    decide(rows[i]);
  }
}

void ExitMeter::apply_gates(std::vector<HeadRow>& rows, const std::vector<int32_t>& index, const void* hidden) {
  const auto asks = [&](int32_t i) { return rows[size_t(i)].needs(exit_needs::gate); };
  if (std::none_of(index.begin(), index.end(), asks)) return;
  const Weights& w = g_.model.weights();
  memory_.gates.reserve(g_.model.device, index.size() * loop_dtype_size(g_.model.real()));
  g_.model.device->run(&LoopBackend::gate, "gate", g_.model.dt, int64_t(index.size()), g_.architecture().hidden, hidden,
                       w.gate_weight, w.gate_bias, memory_.gates.as<>());
  const std::vector<double> logits = download_reals(memory_.gates, g_.model.dt, index.size());
  for (size_t k = 0; k < index.size(); k++) {
    if (!asks(index[k])) continue;
    HeadRow& row = rows[size_t(index[k])];
    row.measures.gate_logit = logits[k];
    row.measures.draw = exit_draw(*row.row, row.made);
    decide(row);
  }
}

// ---- Distributions

void ExitMeter::apply_distributions(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, const Buffer& logits) {
  measure_argmax(rows, chunk, logits);
  measure_entropies(rows, chunk, logits);
  for (int32_t i : chunk)
    if (rows[size_t(i)].needs(exit_needs::distribution)) decide(rows[size_t(i)]);
}

void ExitMeter::measure_argmax(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, const Buffer& logits) {
  std::vector<int32_t> asking;  // indices within the chunk
  for (size_t k = 0; k < chunk.size(); k++)
    if (rows[size_t(chunk[k])].needs(exit_needs::argmax)) asking.push_back(int32_t(k));
  if (asking.empty()) return;
  const int64_t V = g_.architecture().vocabulary, n = int64_t(asking.size());
  const LoopDType real = g_.model.real();
  const void* own = gather_(memory_.logits, real, asking, V, int64_t(chunk.size()), logits.as<>());
  memory_.argmax.reserve(g_.model.device, asking.size() * 4);
  g_.model.device->run(&LoopBackend::reduce, "argmax", real, LOOP_ARGMAX, n, V, int64_t(1), own, memory_.argmax.as<>());
  std::vector<int32_t> argmax(asking.size());
  memory_.argmax.download(argmax.data(), argmax.size() * 4);
  for (size_t k = 0; k < asking.size(); k++) rows[size_t(chunk[size_t(asking[k])])].measures.argmax = argmax[k];
}

// Σ p·x over the vocabulary, one value per row. p, x: real [n, V].
std::vector<double> ExitMeter::expectation(int64_t n, const void* p, const void* x) {
  const LoopDType real = g_.model.real();
  const int64_t V = g_.architecture().vocabulary, count = n * V, one = 1;
  memory_.sums.reserve(g_.model.device, size_t(n) * loop_dtype_size(real));
  g_.model.device->run(&LoopBackend::binary, "multiply", real, LOOP_MULTIPLY, 1, &count, p, &one, x, &one,
                       memory_.product.as<>());
  g_.model.device->run(&LoopBackend::reduce, "sum", real, LOOP_SUM, n, V, int64_t(1), memory_.product.as<>(),
                       memory_.sums.as<>());
  return download_reals(memory_.sums, g_.model.dt, size_t(n));
}

void ExitMeter::measure_entropies(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, const Buffer& logits) {
  constexpr unsigned divergence = exit_needs::divergence | exit_needs::reverse_divergence;
  std::vector<int32_t> index;  // indices within the chunk
  std::vector<HeadRow*> asking;
  for (size_t k = 0; k < chunk.size(); k++)
    if (HeadRow& row = rows[size_t(chunk[k])]; row.needs(exit_needs::entropy | divergence))
      index.push_back(int32_t(k)), asking.push_back(&row);
  if (asking.empty()) return;
  const auto& device = g_.model.device;
  const int64_t V = g_.architecture().vocabulary, n = int64_t(asking.size());
  const LoopDType real = g_.model.real();
  const size_t bytes = asking.size() * size_t(V) * loop_dtype_size(real);
  const void* own = gather_(memory_.logits, real, index, V, int64_t(chunk.size()), logits.as<>());
  for (Buffer* buffer : {&memory_.log_p, &memory_.p, &memory_.product}) buffer->reserve(device, bytes);
  device->run(&LoopBackend::softmax, "softmax", real, n, V, 1, own, memory_.log_p.as<>());
  device->run(&LoopBackend::softmax, "softmax", real, n, V, 0, own, memory_.p.as<>());
  const std::vector<double> negative_entropy = expectation(n, memory_.p.as<>(), memory_.log_p.as<>());
  for (size_t k = 0; k < asking.size(); k++) asking[k]->measures.entropy = -negative_entropy[k];
  if (std::any_of(asking.begin(), asking.end(), [](const HeadRow* row) { return row->needs(divergence); }))
    measure_divergences(asking, negative_entropy);
}

void ExitMeter::measure_divergences(const std::vector<HeadRow*>& asking, const std::vector<double>& negative_entropy) {
  const auto& device = g_.model.device;
  const int64_t V = g_.architecture().vocabulary, n = int64_t(asking.size());
  const LoopDType real = g_.model.real();
  const size_t row_bytes = size_t(V) * loop_dtype_size(real), bytes = asking.size() * row_bytes;
  std::vector<int32_t> before;  // rows of `kept` with the log-probabilities of the loop before; those of this loop are in the
                                // neighbouring row
  for (const HeadRow* row : asking) before.push_back(2 * row->place() + (row->loop - 1) % 2);
  memory_.kept.extend(device, 2 * size_t(g_.row_indices) * row_bytes);
  memory_.previous.reserve(device, bytes);
  gather_.into(memory_.previous.as<>(), real, before, V, memory_.kept.as<>());
  for (size_t k = 0; k < asking.size(); k++)  // P_0 is uniform
    if (asking[k]->loop == 1) device->run(&LoopBackend::zero, "uniform", memory_.previous.at(k * row_bytes), row_bytes);
  const std::vector<double> cross = expectation(n, memory_.p.as<>(), memory_.previous.as<>());
  for (size_t k = 0; k < asking.size(); k++) asking[k]->measures.divergence = negative_entropy[k] - cross[k];

  const auto reversed = [](const HeadRow* row) { return row->needs(exit_needs::reverse_divergence); };
  if (std::any_of(asking.begin(), asking.end(), reversed)) {
    device->run(&LoopBackend::softmax, "softmax", real, n, V, 0, memory_.previous.as<>(), memory_.p.as<>());
    const std::vector<double> reverse = expectation(n, memory_.p.as<>(), memory_.log_p.as<>());
    for (size_t k = 0; k < asking.size(); k++) {
      const double entropy = asking[k]->loop == 1 ? std::log(double(V)) : asking[k]->exit.entropy;
      asking[k]->measures.reverse_divergence = -entropy - reverse[k];
    }
  }
  for (size_t k = 0; k < asking.size(); k++)
    device->run(&LoopBackend::copy, "keep log-probabilities", memory_.kept.at(size_t(before[k] ^ 1) * row_bytes),
                memory_.log_p.at(k * row_bytes), row_bytes);
}

}  // namespace looplm
