#include "readout.h"

#include <algorithm>
#include <cmath>

#include "batch.h"  // defines: upload_ints
#include "../numeric/half.h"
#include "head.h"

namespace looplm {

namespace {

bool reads_distribution(ExitRule rule) {
  return rule == ExitRule::kl || rule == ExitRule::entropy || rule == ExitRule::argmax_stable;
}
// The rule may let the row go after this loop.
bool may_leave(const ReadoutRow& row) {
  const bool compares = row.request->exit.rule == ExitRule::hidden_delta || row.request->exit.rule == ExitRule::kl ||
                        row.request->exit.rule == ExitRule::argmax_stable;
  return row.loop >= std::max(row.request->exit.min_loops, compares ? 2 : 1);
}
bool asks(const ReadoutRow& row, ExitRule rule) {
  return row.wish == ReadoutRow::Wish::rule && row.loop < row.max_loops && row.request->exit.rule == rule;
}

}  // namespace

void Readout::run(std::vector<ReadoutRow>& rows, const void* states, const void* previous, int places) {
  for (ReadoutRow& row : rows)
    row.read = row.wish == ReadoutRow::Wish::read || (row.wish == ReadoutRow::Wish::rule && row.loop >= row.max_loops);
  apply_gates(rows, states);
  apply_deltas(rows, states, previous);

  std::vector<int32_t> at_head;  // rows whose logits are wanted
  for (size_t i = 0; i < rows.size(); i++) {
    const ReadoutRow& row = rows[i];
    const bool asked =
        row.wish == ReadoutRow::Wish::rule && row.loop < row.max_loops && reads_distribution(row.request->exit.rule);
    if (row.read || asked) at_head.push_back(int32_t(i));
  }
  const int64_t D = model_.config.hidden, V = model_.config.vocabulary;
  const size_t most = size_t(std::max<int64_t>(1, model_.device->logits_bytes() / (V * int64_t(real_))));
  for (size_t first = 0; first < at_head.size(); first += most) {
    const std::vector<int32_t> chunk(at_head.begin() + std::ptrdiff_t(first),
                                     at_head.begin() + std::ptrdiff_t(std::min(first + most, at_head.size())));
    const void* hidden = gather("readout.hidden", model_.dt, chunk, D, int64_t(rows.size()), states);
    Buffer& logits = model_.workspace().get("readout.logits", chunk.size() * size_t(V) * real_);
    model_.head(int64_t(chunk.size()), hidden, logits.as<>());
    apply_distributions(rows, chunk, logits, places);
    draw(rows, chunk, logits);
  }
}

// Rows `index` of `from`, which has `rows` of them: `from` itself when they are all of them.
const void* Readout::gather(const char* name, LoopDType type, const std::vector<int32_t>& index, int64_t width, int64_t rows,
                            const void* from) {
  bool all = int64_t(index.size()) == rows;
  for (size_t i = 0; all && i < index.size(); i++) all = index[i] == int32_t(i);
  if (all) return from;
  void* to = model_.workspace().get(name, index.size() * size_t(width) * loop_dtype_size(type)).as<>();
  model_.device->run(&LoopBackend::gather_rows, "gather rows", type, int64_t(index.size()), width,
                     upload_ints(model_.workspace(), "readout.index", index), from, to);
  return to;
}

void Readout::apply_gates(std::vector<ReadoutRow>& rows, const void* states) {
  const bool wanted = std::any_of(rows.begin(), rows.end(), [](auto& row) { return asks(row, ExitRule::gate); });
  if (!wanted) return;
  const int64_t n = int64_t(rows.size());
  Buffer& logits = model_.workspace().get("readout.gates", rows.size() * real_);
  model_.device->run(&LoopBackend::gate, "gate", model_.dt, n, model_.config.hidden, states,
                     static_cast<const void*>(model_.weights().gate_weight), static_cast<const void*>(model_.weights().gate_bias),
                     logits.as<>());
  const std::vector<double> gates = download_reals(logits, model_.dt, rows.size());
  for (size_t i = 0; i < rows.size(); i++) {
    ReadoutRow& row = rows[i];
    if (!asks(row, ExitRule::gate)) continue;
    row.stay *= 1 / (1 + std::exp(gates[i]));
    row.read = may_leave(row) && 1 - row.stay >= row.request->exit.threshold;
  }
}

std::vector<double> Readout::download_states(const void* states, int64_t row) const {
  const size_t D = size_t(model_.config.hidden), bytes = D * act_;
  std::vector<char> raw(bytes);
  model_.device->run(&LoopBackend::copy_out, "copy_out", static_cast<void*>(raw.data()),
                     static_cast<const void*>(static_cast<const char*>(states) + size_t(row) * bytes), bytes);
  std::vector<double> out(D);
  for (size_t j = 0; j < D; j++) {
    if (model_.dt == LOOP_F64) out[j] = reinterpret_cast<const double*>(raw.data())[j];
    else if (model_.dt == LOOP_F32) out[j] = double(reinterpret_cast<const float*>(raw.data())[j]);
    else out[j] = double(bf16_to_float(reinterpret_cast<const uint16_t*>(raw.data())[j]));
  }
  return out;
}

void Readout::apply_deltas(std::vector<ReadoutRow>& rows, const void* states, const void* previous) {
  for (size_t i = 0; i < rows.size(); i++) {
    ReadoutRow& row = rows[i];
    if (!asks(row, ExitRule::hidden_delta) || !may_leave(row)) continue;
    const std::vector<double> now = download_states(states, int64_t(i)), before = download_states(previous, int64_t(i));
    double difference = 0, norm = 0;
    for (size_t j = 0; j < now.size(); j++) {
      difference += (now[j] - before[j]) * (now[j] - before[j]);
      norm += now[j] * now[j];
    }
    row.read = std::sqrt(difference) <= row.request->exit.threshold * std::sqrt(norm);
  }
}

// The rules that look at the distribution of the next token. logits: real [chunk, V]. Log-probabilities of the loop before lie at
// the row's place.
void Readout::apply_distributions(std::vector<ReadoutRow>& rows, const std::vector<int32_t>& chunk, const Buffer& logits,
                                  int places) {
  std::vector<int32_t> asking, comparing;  // rows of the chunk
  bool divergence = false;
  for (size_t k = 0; k < chunk.size(); k++) {
    const ReadoutRow& row = rows[size_t(chunk[k])];
    if (asks(row, ExitRule::argmax_stable)) comparing.push_back(int32_t(k));
    else if (asks(row, ExitRule::kl) || asks(row, ExitRule::entropy)) asking.push_back(int32_t(k));
    divergence |= asks(row, ExitRule::kl);
  }
  const int64_t V = model_.config.vocabulary, m = int64_t(chunk.size());
  Workspace& w = model_.workspace();
  const LoopDType real = model_.real();
  if (!comparing.empty()) {
    const int64_t n = int64_t(comparing.size());
    const void* own = gather("readout.compared", real, comparing, V, m, logits.as<>());
    Buffer& best = w.get("readout.best", comparing.size() * 4);
    model_.device->run(&LoopBackend::reduce, "argmax", real, LOOP_ARGMAX, n, V, int64_t(1), own, best.as<>());
    std::vector<int32_t> now(comparing.size());
    best.download(now.data(), now.size() * 4);
    for (size_t k = 0; k < comparing.size(); k++) {
      ReadoutRow& row = rows[size_t(chunk[size_t(comparing[k])])];
      row.read = may_leave(row) && now[k] == row.best;
      row.best = now[k];
    }
  }
  if (asking.empty()) return;
  const int64_t n = int64_t(asking.size());
  const size_t row_bytes = size_t(V) * real_, bytes = asking.size() * row_bytes;
  const void* own = gather("readout.asked", real, asking, V, m, logits.as<>());
  void *log_p = w.get("readout.log_p", bytes).as<>(), *p = w.get("readout.p", bytes).as<>(),
       *product = w.get("readout.product", bytes).as<>();
  Buffer& sums = w.get("readout.sums", asking.size() * real_);
  model_.device->run(&LoopBackend::softmax, "softmax", real, n, V, 1, own, log_p);
  model_.device->run(&LoopBackend::softmax, "softmax", real, n, V, 0, own, p);
  // Σ p·x over the vocabulary, one number per row
  auto expectation = [&](const void* x) {
    const int64_t count = n * V, one = 1;
    model_.device->run(&LoopBackend::binary, "multiply", real, LOOP_MULTIPLY, 1, &count, static_cast<const void*>(p), &one, x,
                       &one, product);
    model_.device->run(&LoopBackend::reduce, "sum", real, LOOP_SUM, n, V, int64_t(1), static_cast<const void*>(product),
                       sums.as<>());
    return download_reals(sums, model_.dt, asking.size());
  };
  const std::vector<double> negative_entropy = expectation(log_p);
  std::vector<double> cross(asking.size());
  if (divergence) {
    std::vector<int32_t> at;  // of the loop before; this one's log-probabilities lie beside it
    for (int32_t k : asking) {
      const ReadoutRow& row = rows[size_t(chunk[size_t(k)])];
      at.push_back(2 * row.place + (row.loop - 1) % 2);
    }
    kept_.extend(model_.device, 2 * size_t(places) * row_bytes);
    void* before = w.get("readout.before", bytes).as<>();
    model_.device->run(&LoopBackend::gather_rows, "gather rows", real, n, V, upload_ints(w, "readout.index", at),
                       static_cast<const void*>(kept_.as<>()), before);
    cross = expectation(before);
    for (size_t k = 0; k < asking.size(); k++)
      model_.device->run(&LoopBackend::copy, "keep log-probabilities", kept_.at(size_t(at[k] ^ 1) * row_bytes),
                         static_cast<const void*>(static_cast<char*>(log_p) + k * row_bytes), row_bytes);
  }
  for (size_t k = 0; k < asking.size(); k++) {
    ReadoutRow& row = rows[size_t(chunk[size_t(asking[k])])];
    const bool kl = row.request->exit.rule == ExitRule::kl;
    const double value = kl ? negative_entropy[k] - cross[k] : -negative_entropy[k];
    row.read = may_leave(row) && value <= row.request->exit.threshold;
  }
}

// Draws the tokens of the rows of a chunk that leave. Rows with the same sampling options are drawn together.
void Readout::draw(std::vector<ReadoutRow>& rows, const std::vector<int32_t>& chunk, Buffer& logits) {
  const int64_t V = model_.config.vocabulary;
  std::vector<int32_t> open;
  for (size_t k = 0; k < chunk.size(); k++)
    if (rows[size_t(chunk[k])].read) open.push_back(int32_t(k));
  while (!open.empty()) {
    const Sampling sampling = rows[size_t(chunk[size_t(open[0])])].request->sampling;
    std::vector<int32_t> group, rest, sequences, positions;
    for (int32_t k : open) {
      const ReadoutRow& row = rows[size_t(chunk[size_t(k)])];
      if (!(row.request->sampling == sampling)) {
        rest.push_back(k);
        continue;
      }
      group.push_back(k);
      sequences.push_back(row.request->sequence);
      positions.push_back(row.position);
    }
    const size_t n = group.size();
    Workspace& w = model_.workspace();
    const void* own = gather("readout.drawn", model_.real(), group, V, int64_t(chunk.size()), logits.as<>());
    std::vector<std::vector<double>> seen(n);  // before the sampler may overwrite them
    for (size_t k = 0; k < n; k++)
      if (rows[size_t(chunk[size_t(group[k])])].request->alternatives > 0)
        seen[k] = download_reals(logits, model_.dt, size_t(V), size_t(group[k]) * size_t(V));
    Buffer &tokens = w.get("readout.tokens", n * 4), &logprobs = w.get("readout.logprobs", n * real_);
    const LoopSample s{int64_t(n),
                       V,
                       own,
                       sampling.temperature,
                       sampling.top_k,
                       sampling.top_p,
                       sampling.min_p,
                       sampling.seed,
                       upload_ints(w, "readout.sequences", sequences),
                       upload_ints(w, "readout.positions", positions),
                       tokens.as<int32_t>(),
                       logprobs.as<>()};
    model_.device->run(&LoopBackend::sample, "sample", model_.dt, static_cast<const LoopSample*>(&s));
    std::vector<int32_t> made(n);
    tokens.download(made.data(), n * 4);
    const std::vector<double> values = download_reals(logprobs, model_.dt, n);
    for (size_t k = 0; k < n; k++) {
      ReadoutRow& row = rows[size_t(chunk[size_t(group[k])])];
      row.drawn = {made[k], values[k], row.loop, {}};
      if (row.request->alternatives > 0) add_alternatives(row, seen[k]);
    }
    open = std::move(rest);
  }
}

// log P(v) = logits[v] / temperature - log Σ, and the drawn token's log P says what log Σ is.
void Readout::add_alternatives(ReadoutRow& row, const std::vector<double>& logits) const {
  const double temperature = row.request->sampling.temperature == 0 ? 1 : row.request->sampling.temperature;
  const double log_sum = logits[size_t(row.drawn.token)] / temperature - row.drawn.logprob;
  std::vector<int32_t> order(logits.size());
  for (size_t v = 0; v < order.size(); v++) order[v] = int32_t(v);
  const size_t n = std::min(order.size(), size_t(row.request->alternatives));
  std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(n), order.end(), [&](int32_t a, int32_t b) {
    return logits[size_t(a)] > logits[size_t(b)] || (logits[size_t(a)] == logits[size_t(b)] && a < b);
  });
  for (size_t k = 0; k < n; k++) row.drawn.alternatives.emplace_back(order[k], logits[size_t(order[k])] / temperature - log_sum);
}

}  // namespace looplm
