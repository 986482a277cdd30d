#include "wavefront.h"

#include <algorithm>

namespace looplm {

struct Wavefront::Moved {
  std::vector<std::pair<ActiveToken, size_t>> staying;
  std::vector<ActiveToken> fresh;
};

// When a wave is not possible: if loops share a plane, it holds only the keys of the last loop, which a token ahead does not
// have yet. If readouts have blocks, their keys come from the loop at which a token exits; they are there in time only if
// every token takes all loops. If the host answers, it answers for one token at a time.
Wave Wavefront::begin(Generation& g, const GenerateRequest& request, int max_loops) {
  Wave wave;
  const bool possible = request.wavefront && max_loops > 1 && !g.cache.shared() &&
                        request.logits.host == LogitOptions::Host::none &&
                        (!g.reads_with_blocks || request.exit.rule == ExitRule::fixed);
  if (!possible) return wave;
  wave.stride = (max_loops + Wave::MOST_ROWS - 1) / Wave::MOST_ROWS;
  wave.width = (max_loops + wave.stride - 1) / wave.stride;
  const bool keeps = entry_of(request.exit.rule).needs & (exit_needs::divergence | exit_needs::reverse_divergence);
  while (keeps && int32_t(wave.places.size()) + 1 < wave.width) wave.places.push_back(g.acquire_index());
  const double reading = g.model.device->host_visible() ? 12 : 64;  // estimates for a host and for a GPU
  wave.pace = WavefrontPace(TokenCosts(g.architecture(), reading), max_loops, wave.stride, int64_t(g.rows.size()) + 1);
  return wave;
}

bool Wavefront::reads(const ActiveToken& token, int loop) {
  const Row& row = *token.row;
  return token.readouts.wanted && loop < row.max_loops && loop % row.wave.stride == 0 &&
         token.made() + 1 < row.request.max_new_tokens;
}

void Wavefront::settle(const std::vector<size_t>& members, const std::vector<ActiveToken>& tokens, std::vector<HeadRow>& reads,
                       NextPass& next) {
  Row& row = *tokens[members[0]].row;
  Moved moved;
  for (size_t i : members) {
    ActiveToken token = tokens[i];
    HeadRow& read = reads[i];
    token.exit = read.exit;
    if (read.draws()) token.readouts.add(read.drawn.token, token.loop);
    if (read.exits) {
      g_.exit_token(row, token);
      row.wave.drawn[token.made()] = {std::move(read.drawn), token.readouts};
    } else {
      moved.staying.emplace_back(token, i);
    }
    if (read.draws() && !holds(row, token)) break;
  }
  if (!confirm(row, moved)) {
    next.done.push_back(&row);
    return;
  }
  grow(row, moved);
  for (const auto& [token, i] : moved.staying) next.stay(token, i);
  next.fresh.insert(next.fresh.end(), moved.fresh.begin(), moved.fresh.end());
}

// Whether the drafted token after this one is the one that this token's readout drew. If not, it and all later ones are
// dropped.
bool Wavefront::holds(Row& row, const ActiveToken& token) {
  const size_t ahead = size_t(token.ahead);
  if (ahead >= row.drafts.size() || row.drafts[ahead] == token.readouts.token) return true;
  row.drafts.resize(ahead);
  row.wave.drawn.erase(row.wave.drawn.upper_bound(token.made()), row.wave.drawn.end());
  return false;
}

// Adds the tokens at the front that have exited to the sequence. Returns false if the sequence has ended.
bool Wavefront::confirm(Row& row, Moved& moved) {
  for (auto front = row.wave.drawn.find(row.made); front != row.wave.drawn.end(); front = row.wave.drawn.find(row.made)) {
    Wave::Drawn drawn = std::move(front->second);
    row.wave.drawn.erase(front);
    row.wave.pace.add(drawn.readouts, drawn.token.loop, int64_t(g_.rows.size()));
    if (!g_.add_token(row, std::move(drawn.token))) return false;
    if (row.drafts.empty()) {
      moved.fresh.push_back(fresh_token(row, 0, row.newest));
      continue;
    }
    row.drafts.erase(row.drafts.begin());
    g_.count([](SchedulerStats& s) { s.accepted++; });
    for (auto& [token, i] : moved.staying) token.ahead--;
  }
  return true;
}

// Starts one more token after the last one: the one that the latest readout of the last one drew.
void Wavefront::grow(Row& row, Moved& moved) {
  const int32_t end = int32_t(row.drafts.size());
  const auto left = row.wave.drawn.find(row.made + end);
  int32_t drawn = -1;
  if (left != row.wave.drawn.end()) drawn = left->second.token.token;
  else if (!moved.staying.empty() && moved.staying.back().first.ahead == end) drawn = moved.staying.back().first.readouts.token;
  const auto& stops = row.request.stop_tokens;
  if (drawn < 0 || !row.wave.pace.drafts() || end + 1 >= row.wave.width || end + 1 > g_.most_ahead(row) ||
      row.made + end + 1 >= row.request.max_new_tokens || std::find(stops.begin(), stops.end(), drawn) != stops.end())
    return;
  row.drafts.push_back(drawn);
  moved.fresh.push_back(fresh_token(row, end + 1, drawn));
  g_.count([](SchedulerStats& s) { s.drafted++; });
}

}  // namespace looplm
