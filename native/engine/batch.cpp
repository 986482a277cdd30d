#include "batch.h"

#include <algorithm>

namespace looplm {

namespace {

// Equal tokens are not enough: the initial states that a caller passes may differ as well.
bool same_prompt(const Sequences& s, size_t a, size_t b) {
  if (s.prompt(a) != s.prompt(b)) return false;
  const int64_t length = s.prompt(a), width = int64_t(s.states.size() / std::max<size_t>(1, s.tokens.size()));
  const auto x = s.tokens.begin() + s.offsets[a], y = s.tokens.begin() + s.offsets[b];
  const auto u = s.states.begin() + s.offsets[a] * width, v = s.states.begin() + s.offsets[b] * width;
  return std::equal(x, x + length, y) && std::equal(u, u + length * width, v);
}

struct Packer {
  const Sequences& s;
  const PackOptions& options;
  PackedBatch out;

  int64_t kept(size_t i) const { return s.length(i) - (options.keep_last_token ? 0 : 1); }

  // Sequences [i, end) share a prompt of more than one token. One segment holds all of it except the last token. Prompts with
  // input vectors are never shared, because equal ids do not mean equal vectors.
  size_t group_end(size_t i) const {
    size_t end = i + 1;
    if (!options.share_prompts || options.two_way || s.prompt(i) < 2 || s.vectors.count() > 0) return end;
    while (end < s.count() && same_prompt(s, i, end)) end++;
    return end;
  }

  void add_tokens(size_t i, int64_t from, int64_t to) {
    const int32_t* tokens = s.tokens.data() + s.offsets[i];
    for (int64_t j = from; j < to; j++) {
      out.ids.push_back(tokens[j]);
      out.positions.push_back(int32_t(j));
      out.sources.push_back(int32_t(i));
    }
    out.max_position = std::max(out.max_position, int32_t(to - 1));
    out.max_context = std::max(out.max_context, int32_t(to));
  }
  // Adds tokens [from, kept) of sequence i as a segment that attends to a prefix, and the prediction rows of these tokens.
  void add_segment(size_t i, int64_t from, int32_t prefix_begin, int32_t prefix_end) {
    int32_t begin = int32_t(out.ids.size());
    add_tokens(i, from, kept(i));
    const int64_t two_way = options.two_way ? std::min(s.prompt(i), kept(i)) : 0;
    out.segments.push_back({begin, int32_t(out.ids.size()), prefix_begin, prefix_end, out.group_count, int32_t(two_way)});
    int64_t first = options.responses_only ? s.prompt(i) - 1 : 0;
    const int32_t* mask = options.mask && !options.mask->empty() ? options.mask->data() + s.offsets[i] - int64_t(i) : nullptr;
    for (int64_t j = std::max(first, from); j < s.length(i) - 1; j++)
      if (!mask || mask[j] != 0)
        out.rows.push_back({begin + int32_t(j - from), s.tokens[size_t(s.offsets[i] + j + 1)], int32_t(i), int32_t(j)});
  }
  void add_group(size_t i, size_t end) {
    if (end - i == 1) {
      out.first_token.push_back(int32_t(out.ids.size()));
      if (kept(i) > 0) add_segment(i, 0, 0, 0);
    } else {
      int32_t begin = int32_t(out.ids.size());
      add_tokens(i, 0, s.prompt(i) - 1);
      int32_t prefix_end = int32_t(out.ids.size());
      out.segments.push_back({begin, prefix_end, 0, 0, out.group_count, 0});
      for (; i < end; i++) {
        out.first_token.push_back(begin);
        if (kept(i) >= s.prompt(i)) add_segment(i, s.prompt(i) - 1, begin, prefix_end);
      }
    }
    out.group_count++;
  }
  // Splits a group of sequences with the same prompt when their responses exceed the token budget. The rest becomes another
  // group, and the prompt runs again for it. Prompt tokens do not count here, otherwise a long prompt would leave only one
  // response per batch.
  size_t part_end(size_t i, size_t end) const {
    int64_t responses = 0;
    for (size_t k = i; k < end; k++) {
      responses += std::max<int64_t>(0, kept(k) - (s.prompt(k) - 1));
      if (k > i && responses > options.token_budget) return k;
    }
    return end;
  }
  int64_t group_tokens(size_t i, size_t end) const {
    if (end - i == 1) return kept(i);
    int64_t n = s.prompt(i) - 1;
    for (; i < end; i++) n += std::max<int64_t>(0, kept(i) - (s.prompt(i) - 1));
    return n;
  }
};

}  // namespace

PackedBatch pack(const Sequences& sequences, size_t begin, const PackOptions& options, size_t limit) {
  Packer packer{sequences, options, {}};
  packer.out.begin = begin;
  size_t i = begin;
  while (i < std::min(limit, sequences.count())) {
    size_t end = std::min(limit, packer.group_end(i));
    if (i > begin && packer.out.tokens() + packer.group_tokens(i, end) > options.token_budget) break;
    end = packer.part_end(i, end);
    packer.add_group(i, end);
    i = end;
  }
  packer.out.end = i;
  return std::move(packer.out);
}

PackedBatch repeat(const PackedBatch& batch, int copies) {
  PackedBatch out = batch;
  const int32_t tokens = int32_t(batch.tokens());
  for (int c = 1; c < copies; c++) {
    out.ids.insert(out.ids.end(), batch.ids.begin(), batch.ids.end());
    out.positions.insert(out.positions.end(), batch.positions.begin(), batch.positions.end());
    out.sources.insert(out.sources.end(), batch.sources.begin(), batch.sources.end());
    const int32_t shift = c * tokens;
    for (LoopSegment s : batch.segments)
      out.segments.push_back({s.begin + shift, s.end + shift, s.prefix_begin + shift, s.prefix_end + shift,
                              s.group + c * batch.group_count, s.two_way});
    for (PredictionRow row : batch.rows) {
      row.token += shift;
      out.rows.push_back(row);
    }
    for (int32_t first : batch.first_token) out.first_token.push_back(first + shift);
  }
  out.group_count *= copies;
  return out;
}

const int32_t* upload_ints(const std::shared_ptr<Device>& device, Buffer& buffer, const std::vector<int32_t>& values) {
  buffer.reserve(device, values.size() * 4 + 4);
  buffer.upload(values.data(), values.size() * 4);
  return buffer.as<int32_t>();
}

std::vector<int32_t> previous_rows(const std::vector<LoopSegment>& segments, int64_t tokens) {
  const auto none = int32_t(tokens);
  std::vector<int32_t> previous(static_cast<size_t>(tokens), none);
  for (const LoopSegment& s : segments) {
    if (s.begin < s.end && s.prefix_begin < s.prefix_end) previous[size_t(s.begin)] = s.prefix_end - 1;
    for (int32_t row = s.begin + 1; row < s.end; row++) previous[size_t(row)] = row - 1;
  }
  return previous;
}

int64_t InputVectors::common(const InputVectors& other) const {
  const size_t least = size_t(std::min(count(), other.count())), width = count() > 0 ? values.size() / tokens.size() : 0;
  size_t k = 0;
  const auto row = [&](const InputVectors& of) { return of.values.begin() + ptrdiff_t(k * width); };
  while (k < least && tokens[k] == other.tokens[k] && std::equal(row(*this), row(*this) + ptrdiff_t(width), row(other))) k++;
  int64_t first = INT64_MAX;
  for (const InputVectors* of : {this, &other})
    if (int64_t(k) < of->count()) first = std::min(first, of->tokens[k]);
  return first;
}

void VectorRuns::add(const InputVectors& vectors, int64_t token, int64_t row, int64_t hidden) {
  const auto found = std::lower_bound(vectors.tokens.begin(), vectors.tokens.end(), token);
  if (found == vectors.tokens.end() || *found != token) return;
  const int64_t vector = found - vectors.tokens.begin();
  values.insert(values.end(), vectors.values.begin() + vector * hidden, vectors.values.begin() + (vector + 1) * hidden);
  if (!runs.empty() && runs.back().token + runs.back().count == row && runs.back().vector + runs.back().count == vector)
    runs.back().count++;
  else runs.push_back({row, 1, vector});
}

DeviceBatch upload(const PackedBatch& batch, const std::shared_ptr<Device>& device, BatchMemory& memory) {
  memory.segments.reserve(device, batch.segments.size() * sizeof(LoopSegment));
  memory.segments.upload(batch.segments.data(), batch.segments.size() * sizeof(LoopSegment));
  return {batch.tokens(),
          upload_ints(device, memory.ids, batch.ids),
          upload_ints(device, memory.positions, batch.positions),
          memory.segments.as<LoopSegment>(),
          int32_t(batch.segments.size()),
          batch.group_count,
          batch.max_context,
          batch.max_position,
          nullptr,
          upload_ints(device, memory.previous, previous_rows(batch.segments, batch.tokens()))};
}

}  // namespace looplm
