#include "sampler.h"

#include <algorithm>

namespace looplm {

namespace {

// log P(v) = logits[v] / temperature - log Σ. The drawn token's known log P gives log Σ.
void add_alternatives(HeadRow& row, const std::vector<double>& logits) {
  const GenerateRequest& request = row.row->request;
  const double temperature = request.sampling.temperature == 0 ? 1 : request.sampling.temperature;
  const double log_sum = logits[size_t(row.drawn.token)] / temperature - row.drawn.logprob;
  std::vector<int32_t> order(logits.size());
  for (size_t v = 0; v < order.size(); v++) order[v] = int32_t(v);
  const size_t n = std::min(order.size(), size_t(request.alternatives));
  std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(n), order.end(), [&](int32_t a, int32_t b) {
    return logits[size_t(a)] > logits[size_t(b)] || (logits[size_t(a)] == logits[size_t(b)] && a < b);
  });
  for (size_t k = 0; k < n; k++) row.drawn.alternatives.emplace_back(order[k], logits[size_t(order[k])] / temperature - log_sum);
}

bool edited(const Row& row) { return !row.edits.empty() || row.request.logits.host != LogitOptions::Host::none; }

bool drawn_alike(const Row& a, const Row& b) { return a.request.sampling == b.request.sampling && edited(a) == edited(b); }

}  // namespace

// Rows with the same sampling options are drawn in one kernel call.
void Sampler::draw(std::vector<HeadRow>& rows, const Index& chunk, Buffer& logits) {
  const auto row = [&](int32_t k) -> HeadRow& { return rows[size_t(chunk[size_t(k)])]; };
  const auto draws = [&](int32_t i) { return rows[size_t(i)].draws(); };
  if (std::any_of(chunk.begin(), chunk.end(), draws)) g_.collect_answers();
  Index open;  // indices within the chunk
  for (size_t k = 0; k < chunk.size(); k++) {
    HeadRow& r = row(int32_t(k));
    if (!r.draws()) continue;
    if (r.row->waits_for_host()) defer(r, int64_t(k), logits);
    else open.push_back(int32_t(k));
  }
  while (!open.empty()) {
    Index group, rest;
    for (int32_t k : open) (drawn_alike(*row(k).row, *row(open[0]).row) ? group : rest).push_back(k);
    draw_alike(rows, chunk, group, logits);
    open = std::move(rest);
  }
}

void Sampler::draw_deferred(std::vector<HeadRow>& rows) {
  const int64_t V = model_.config.vocabulary;
  Index index, chunk;
  for (size_t i = 0; i < rows.size(); i++) {
    index.push_back(rows[i].row->index);
    chunk.push_back(int32_t(i));
  }
  memory_.deferred_rows.reserve(model_.device, index.size() * size_t(V) * loop_dtype_size(model_.real()));
  gather_.into(memory_.deferred_rows.as<>(), model_.real(), index, V, memory_.deferred.as<>());
  draw(rows, chunk, memory_.deferred_rows);
}

// Keeps the logits of a row that waits for the host. place: index of the row in `logits`. With Host::logits, the host gets
// logits to which biases and penalties are already applied.
void Sampler::defer(HeadRow& row, int64_t place, Buffer& logits) {
  const size_t V = size_t(model_.config.vocabulary), bytes = V * loop_dtype_size(model_.real());
  const auto copy = [&](Buffer& to, size_t offset) {
    model_.device->run(&LoopBackend::copy, "logits that wait", to.at(offset), logits.at(size_t(place) * bytes), bytes);
  };
  row.deferred = true;
  memory_.deferred.extend(model_.device, size_t(g_.row_indices) * bytes);
  copy(memory_.deferred, size_t(row.row->index) * bytes);
  if (row.row->request.logits.host != LogitOptions::Host::logits) return;
  memory_.host_logits.reserve(model_.device, bytes);
  copy(memory_.host_logits, 0);
  edit({&row}, memory_.host_logits.as<>());
  row.logits = download_reals(memory_.host_logits, model_.dt, V);
}

// Applies biases, penalties and masks to logits, real [rows, V], in place.
void Sampler::edit(const std::vector<const HeadRow*>& rows, void* logits) {
  const int64_t V = model_.config.vocabulary;
  const size_t words = size_t(V + 31) / 32;
  std::vector<LoopLogitEdit> edits;
  std::vector<int32_t> allowed;
  for (size_t k = 0; k < rows.size(); k++) {
    const Row& row = *rows[k]->row;
    const size_t ahead = size_t(rows[k]->made - row.made);
    if (ahead == 0) {
      row.edits.append_to(edits, int64_t(k) * V);
    } else {
      LogitEdits drafted = row.edits;
      for (size_t d = 0; d < ahead; d++) drafted.add_drawn(row.drafts[d]);
      drafted.append_to(edits, int64_t(k) * V);
    }
    if (row.answer.allowed.empty()) continue;
    allowed.resize(rows.size() * words, -1);  // -1: all tokens allowed
    std::copy(row.answer.allowed.begin(), row.answer.allowed.end(), allowed.begin() + ptrdiff_t(k * words));
  }
  const auto* mask = reinterpret_cast<const uint32_t*>(upload(model_.device, memory_.allowed, allowed));
  const LoopLogitEdits e{int64_t(rows.size()),
                         V,
                         logits,
                         int64_t(edits.size()),
                         upload(model_.device, memory_.edits, edits),
                         allowed.empty() ? nullptr : mask};
  model_.device->run(&LoopBackend::edit_logits, "edit logits", model_.dt, static_cast<const LoopLogitEdits*>(&e));
}

// Replaces logits by those from the host, which already include biases and penalties.
void Sampler::replace(const std::vector<const HeadRow*>& rows, Buffer& logits) {
  const size_t V = size_t(model_.config.vocabulary);
  for (size_t k = 0; k < rows.size(); k++)
    if (const auto& given = rows[k]->row->answer.logits; !given.empty()) upload_reals(logits, model_.dt, given.data(), V, k * V);
}

void Sampler::draw_alike(std::vector<HeadRow>& rows, const Index& chunk, const Index& group, Buffer& logits) {
  const auto& device = model_.device;
  const int64_t V = model_.config.vocabulary;
  const size_t n = group.size();
  const auto row = [&](size_t k) -> HeadRow& { return rows[size_t(chunk[size_t(group[k])])]; };
  std::vector<int32_t> sequences, positions;
  std::vector<const HeadRow*> members;
  std::vector<std::vector<double>> seen(n);  // saved before the sampler may overwrite them
  for (size_t k = 0; k < n; k++) {
    members.push_back(&row(k));
    sequences.push_back(row(k).row->request.sequence);
    positions.push_back(row(k).position());
    if (row(k).exits && row(k).row->request.alternatives > 0)
      seen[k] = download_reals(logits, model_.dt, size_t(V), size_t(group[k]) * size_t(V));
  }
  const bool edits = edited(*row(0).row);
  const void* own = gather_(memory_.logits, model_.real(), group, V, int64_t(chunk.size()), logits.as<>());
  if (edits) {
    const size_t bytes = n * size_t(V) * loop_dtype_size(model_.real());
    memory_.own.reserve(device, bytes);
    device->run(&LoopBackend::copy, "logits to edit", memory_.own.as<>(), own, bytes);
    edit(members, memory_.own.as<>());
    replace(members, memory_.own);
  }
  memory_.tokens.reserve(device, n * 4);
  memory_.logprobs.reserve(device, n * loop_dtype_size(model_.real()));
  const Sampling& options = row(0).row->request.sampling;
  const LoopSample s{int64_t(n),
                     V,
                     edits ? memory_.own.as<>() : own,
                     options.temperature,
                     options.top_k,
                     options.top_p,
                     options.min_p,
                     options.seed,
                     upload(device, memory_.sequences, sequences),
                     upload(device, memory_.positions, positions),
                     memory_.tokens.as<int32_t>(),
                     memory_.logprobs.as<>()};
  device->run(&LoopBackend::sample, "sample", model_.dt, static_cast<const LoopSample*>(&s));
  if (edits)  // the sampler got edited logits, but log-probabilities must be the model's
    device->run(&LoopBackend::head_rows, "log-probabilities", model_.dt, int64_t(n), V,
                options.temperature == 0 ? 1.0 : options.temperature, const_cast<void*>(own), memory_.tokens.as<const int32_t>(),
                static_cast<const LoopLoss*>(nullptr), memory_.logprobs.as<>(), nullptr);
  std::vector<int32_t> tokens(n);
  memory_.tokens.download(tokens.data(), n * 4);
  const std::vector<double> logprobs = download_reals(memory_.logprobs, model_.dt, n);
  for (size_t k = 0; k < n; k++) {
    row(k).drawn = {tokens[k], logprobs[k], row(k).loop, {}};
    if (row(k).exits && row(k).row->request.alternatives > 0) add_alternatives(row(k), seen[k]);
  }
}

}  // namespace looplm
