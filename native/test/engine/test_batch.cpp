// Packed batches: which tokens each token attends to, which predictions get rows, where a batch ends, and what equal prompts
// share.
#include <algorithm>
#include <map>
#include <numeric>

#include "../../engine/batch.h"
#include "../../numeric/philox.h"
#include "claims.h"

namespace looplm::test {
namespace {

Sequences sequences_of(const std::vector<std::vector<int32_t>>& tokens, const std::vector<int32_t>& prompts) {
  Sequences s;
  s.offsets = {0};
  for (const auto& one : tokens) {
    s.tokens.insert(s.tokens.end(), one.begin(), one.end());
    s.offsets.push_back(int64_t(s.tokens.size()));
  }
  s.prompt_lengths = prompts;
  return s;
}

// The tokens that a packed token attends to; the token itself is last.
std::vector<int32_t> seen_by(const PackedBatch& batch, int32_t token) {
  for (const LoopSegment& s : batch.segments) {
    if (token < s.begin || token >= s.end) continue;
    std::vector<int32_t> seen(batch.ids.begin() + s.prefix_begin, batch.ids.begin() + s.prefix_end);
    seen.insert(seen.end(), batch.ids.begin() + s.begin, batch.ids.begin() + token + 1);
    return seen;
  }
  return {};
}

// Whether every row predicts the next token of its sequence from exactly the tokens before it.
bool rows_are_right(const Sequences& s, const PackedBatch& batch) {
  for (const PredictionRow& row : batch.rows) {
    const auto first = s.tokens.begin() + s.offsets[size_t(row.sequence)];
    const std::vector<int32_t> before(first, first + row.position + 1);
    if (seen_by(batch, row.token) != before || first[row.position + 1] != row.target) return false;
    if (batch.positions[size_t(row.token)] != row.position) return false;
  }
  return true;
}

// Whether segments are contiguous and cover all tokens, and those of a group are neighbours. A group without tokens has no
// segment.
bool segments_are_right(const PackedBatch& batch) {
  int32_t at = 0, group = 0;
  for (const LoopSegment& s : batch.segments) {
    if (s.begin != at || s.end < s.begin || s.prefix_end > s.begin) return false;
    if (s.group < group || s.group >= batch.group_count) return false;
    at = s.end;
    group = s.group;
  }
  return at == int32_t(batch.tokens());
}

// Sequences in a few groups with equal prompts. Every random number depends on its place in the sequence of draws.
Sequences drawn_sequences(uint32_t seed) {
  uint32_t place = 0;
  const auto draw = [&](uint32_t below) { return int32_t(philox4x32({place++, 0, 0, 0}, seed)[0] % below); };
  std::vector<std::vector<int32_t>> tokens;
  std::vector<int32_t> prompts;
  for (int group = 0; group < 4; group++) {
    std::vector<int32_t> prompt(size_t(1 + draw(4)));
    for (int32_t& token : prompt) token = draw(3);
    for (int member = draw(3); member >= 0; member--) {
      tokens.push_back(prompt);
      for (int more = draw(4); more > 0; more--) tokens.back().push_back(draw(3));
      prompts.push_back(int32_t(prompt.size()));
    }
  }
  return sequences_of(tokens, prompts);
}

// Packs all sequences into batches and counts how often each prediction gets a row.
std::map<std::pair<int32_t, int32_t>, int> predictions(const Sequences& s, const PackOptions& options, bool& right) {
  std::map<std::pair<int32_t, int32_t>, int> counts;
  for (size_t begin = 0; begin < s.count();) {
    const PackedBatch batch = pack(s, begin, options);
    right &= batch.begin == begin && batch.end > begin && rows_are_right(s, batch) && segments_are_right(batch);
    right &= batch.first_token.size() == batch.end - begin && batch.sources.size() == batch.ids.size();
    for (const PredictionRow& row : batch.rows) counts[{row.sequence, row.position}]++;
    begin = batch.end;
  }
  return counts;
}

ENGINE_TEST(batch_rows, "batch: rows") {
  bool right = true, once = true;
  for (uint32_t seed = 0; seed < 200; seed++) {
    const Sequences s = drawn_sequences(seed);
    for (const int64_t budget : {int64_t(1), int64_t(9), int64_t(1000)})
      for (const bool share : {false, true})
        for (const bool responses : {false, true})
          for (const bool last : {false, true}) {
            if (share && !responses) continue;  // predictions within a shared prompt get no rows
            const auto counts = predictions(s, {budget, share, responses, last}, right);
            size_t expected = 0;
            for (size_t i = 0; i < s.count(); i++) {
              const int64_t first = responses ? s.prompt(i) - 1 : 0;
              expected += size_t(std::max<int64_t>(0, s.length(i) - 1 - first));
              for (int64_t j = first; j < s.length(i) - 1; j++) once &= counts.count({int32_t(i), int32_t(j)}) == 1;
            }
            once &= counts.size() == expected;
            for (const auto& [place, count] : counts) once &= count == 1;
          }
  }
  claim("every row predicts the next token of its sequence from all tokens before it", right);
  claim("every prediction is a row of one batch", once);
}

ENGINE_TEST(batch_shared, "batch: shared prompts") {
  const Sequences s = sequences_of({{1, 2, 3, 4, 5}, {1, 2, 3, 6}, {1, 2, 9, 7}}, {3, 3, 3});
  const PackedBatch batch = pack(s, 0, {1000, true, true, false});
  claim("a shared prompt lies once, without its last token", batch.ids == std::vector<int32_t>{1, 2, 3, 4, 3, 1, 2, 9});
  claim("positions go on behind it", batch.positions == std::vector<int32_t>{0, 1, 2, 3, 2, 0, 1, 2});
  claim("two groups", batch.group_count == 2 && batch.segments.size() == 4);
  claim("each sequence begins where its prompt does", batch.first_token == std::vector<int32_t>{0, 0, 5});
  claim("the longest context", batch.max_context == 4 && batch.max_position == 3);
  const int32_t none = int32_t(batch.tokens());
  claim("the token before a response is the prompt's last but one",
        previous_rows(batch.segments, none) == std::vector<int32_t>{none, 0, 1, 2, 1, none, 5, 6});

  PackOptions two_way{1000, true, true, false};
  two_way.two_way = true;
  claim("prompts that see themselves both ways are not shared", pack(s, 0, two_way).group_count == 3);
  claim("their tokens are marked", pack(s, 0, two_way).segments[0].two_way == 3);

  Sequences with_vectors = s;
  with_vectors.vectors.tokens = {0};
  with_vectors.vectors.values = {0.5};
  claim("prompts with vectors are not shared", pack(with_vectors, 0, {1000, true, true, false}).group_count == 3);
  Sequences with_states = s;
  with_states.states.assign(s.tokens.size(), 0.0);
  with_states.states[5] = 1;  // the first token of the second sequence
  claim("prompts with different states are not shared", pack(with_states, 0, {1000, true, true, false}).group_count == 3);
}

ENGINE_TEST(batch_budget, "batch: budget") {
  const Sequences s = sequences_of({{1, 2, 3, 4}, {1, 2, 3, 5}, {1, 2, 3, 6}, {7, 8, 9}}, {3, 3, 3, 1});
  claim("a batch ends before the group that does not fit", pack(s, 0, {6, true, true, true}).end == 3);
  claim("a group whose responses do not fit is cut", pack(s, 0, {4, true, true, true}).end == 2);
  claim("and its prompt runs again", pack(s, 2, {4, true, true, true}).ids == std::vector<int32_t>{1, 2, 3, 6});
  claim("at least one sequence is taken", pack(s, 3, {1, true, true, true}).end == 4);
  claim("a limit holds", pack(s, 0, {1000, true, true, true}, 1).end == 1);
}

ENGINE_TEST(batch_mask, "batch: masks and copies") {
  const Sequences s = sequences_of({{1, 2, 3, 4}, {5, 6, 7}}, {1, 1});
  const std::vector<int32_t> mask = {1, 0, 1, 0, 1};
  PackOptions options{1000, false, true, false};
  options.mask = &mask;
  const PackedBatch batch = pack(s, 0, options);
  std::vector<int32_t> targets;
  for (const PredictionRow& row : batch.rows) targets.push_back(row.target);
  claim("masked predictions are no rows", targets == std::vector<int32_t>{2, 4, 7});

  const PackedBatch copies = repeat(batch, 3);
  bool equal = copies.tokens() == 3 * batch.tokens() && copies.group_count == 3 * batch.group_count && segments_are_right(copies);
  for (size_t k = 0; k < copies.rows.size(); k++) {
    const PredictionRow &row = copies.rows[k], &of = batch.rows[k % batch.rows.size()];
    const int32_t shift = int32_t(k / batch.rows.size()) * int32_t(batch.tokens());
    equal &= row.token == of.token + shift && row.target == of.target && row.sequence == of.sequence;
  }
  claim("copies follow each other, each with its rows", equal && copies.rows.size() == 3 * batch.rows.size());
  claim("rows of copies are right too", rows_are_right(s, copies));
}

}  // namespace
}  // namespace looplm::test
