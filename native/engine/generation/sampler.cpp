#include "sampler.h"

#include <algorithm>

namespace looplm {

namespace {

// log P(v) = logits[v] / temperature - log Σ, and the drawn token's log P says what log Σ is.
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

}  // namespace

// Rows with the same sampling options are drawn together.
void Sampler::draw(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, Buffer& logits) {
  const auto sampling = [&](int32_t k) -> const Sampling& { return rows[size_t(chunk[size_t(k)])].row->request.sampling; };
  std::vector<int32_t> open;  // rows of the chunk
  for (size_t k = 0; k < chunk.size(); k++)
    if (rows[size_t(chunk[k])].exits) open.push_back(int32_t(k));
  while (!open.empty()) {
    std::vector<int32_t> group, rest;
    for (int32_t k : open) (sampling(k) == sampling(open[0]) ? group : rest).push_back(k);
    draw_alike(rows, chunk, group, logits);
    open = std::move(rest);
  }
}

void Sampler::draw_alike(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, const std::vector<int32_t>& group,
                         Buffer& logits) {
  const auto& device = model_.device;
  const int64_t V = model_.config.vocabulary;
  const size_t n = group.size();
  const auto row = [&](size_t k) -> HeadRow& { return rows[size_t(chunk[size_t(group[k])])]; };
  std::vector<int32_t> sequences, positions;
  std::vector<std::vector<double>> seen(n);  // before the sampler may overwrite them
  for (size_t k = 0; k < n; k++) {
    sequences.push_back(row(k).row->request.sequence);
    positions.push_back(row(k).position());
    if (row(k).row->request.alternatives > 0)
      seen[k] = download_reals(logits, model_.dt, size_t(V), size_t(group[k]) * size_t(V));
  }
  const void* own = gather_(memory_.logits, model_.real(), group, V, int64_t(chunk.size()), logits.as<>());
  memory_.tokens.reserve(device, n * 4);
  memory_.logprobs.reserve(device, n * loop_dtype_size(model_.real()));
  const Sampling& options = row(0).row->request.sampling;
  const LoopSample s{int64_t(n),
                     V,
                     own,
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
  std::vector<int32_t> tokens(n);
  memory_.tokens.download(tokens.data(), n * 4);
  const std::vector<double> logprobs = download_reals(memory_.logprobs, model_.dt, n);
  for (size_t k = 0; k < n; k++) {
    row(k).drawn = {tokens[k], logprobs[k], row(k).loop, {}};
    if (row(k).row->request.alternatives > 0) add_alternatives(row(k), seen[k]);
  }
}

}  // namespace looplm
