#include "prefill.h"

#include <algorithm>

namespace looplm {

bool Prefill::open() const {
  return std::any_of(g_.prompts.begin(), g_.prompts.end(), [](auto& p) { return !p->ready; });
}

bool Prefill::shrink() {
  constexpr int64_t FEWEST = 32;  // tokens of the smallest piece
  if (tokens_ <= FEWEST) return false;
  tokens_ = std::max(FEWEST, tokens_ / 2);
  return true;
}

// A piece of a prompt reads the keys and values of the earlier pieces from the cache. If every loop has its own plane, each
// piece runs all loops at once. If all loops share one plane, each loop overwrites it, but a piece needs the earlier keys of
// its own loop. So there all pieces run one loop, then all of them the next. One call does the same amount of work either
// way.
void Prefill::run() {
  release_sources();
  int64_t room = tokens_ * (g_.cache.shared() ? g_.loops : 1);
  while (room > 0 && open()) {
    const std::vector<Piece> pieces = next_pieces(std::min(room, tokens_));
    for (const Piece& piece : pieces) room -= piece.count();
    run_pieces(pieces);
    if (g_.cache.with_residuals()) release_sources();
    else if (!g_.cache.shared()) break;
  }
}

// Releases the prompts whose keys others share, as soon as the shared tokens have run.
void Prefill::release_sources() {
  std::vector<Prompt*> sources;
  for (auto& p : g_.prompts)
    if (p->source && p->source->done >= p->shared) sources.push_back(std::exchange(p->source, nullptr));
  for (Prompt* source : sources) g_.release_prompt(*source);
}

// At most one piece of each prompt, all of them at the same loops. A prompt with bidirectional attention runs as a whole.
std::vector<Prefill::Piece> Prefill::next_pieces(int64_t room) const {
  std::vector<Piece> pieces;
  for (auto& p : g_.prompts) {
    if (room <= 0) break;
    if (p->ready || p->source ||
        (!pieces.empty() && (p->family.loops != pieces[0].prompt->family.loops || p->loop != pieces[0].prompt->loop)))
      continue;
    const int64_t end = end_of_piece(*p, room), count = end - p->done;
    if (count > room && !pieces.empty()) continue;
    pieces.push_back({p.get(), p->done, end});
    room -= count;
  }
  return pieces;
}

// In a quantized cache, a piece consists of whole blocks; with residuals of one block, because the next piece reads its
// records.
int64_t Prefill::end_of_piece(const Prompt& prompt, int64_t room) const {
  if (g_.cache.with_residuals()) return std::min(prompt.length(), Cache::block_end(prompt.done, prompt.family.prefix));
  const int64_t most = std::min(prompt.length(), prompt.done + room),
                end = std::max(most, prompt.done == 0 ? prompt.family.prefix : 0);
  if (!g_.cache.coded() || end == prompt.length()) return end;
  const int64_t start = Cache::block_start(end, prompt.family.prefix);
  return start > prompt.done ? start : std::min(prompt.length(), Cache::block_end(prompt.done, prompt.family.prefix));
}

struct Prefill::Packed {
  std::vector<int32_t> ids, positions, slots;
  std::vector<LoopSegment> segments;
  std::vector<CachedPrefix> prefixes;
  std::vector<int32_t> recent;                           // recent slots of the rows in recent_runs
  std::vector<std::pair<int64_t, int64_t>> recent_runs;  // CodedUse::runs
  int64_t prefix_rows = 0;
  int32_t max_context = 0;
};

// Row numbers of segments include the cached prefixes, which attention puts in front of the batch. In a quantized cache, the
// cached prefix of a piece extends to the start of its last block: every block is a segment that reads all earlier blocks
// from the cache.
Prefill::Packed Prefill::pack(const std::vector<Piece>& pieces) const {
  Packed out;
  for (const Piece& piece : pieces) {
    piece.prompt->for_runs(0, prefix_of(piece), [&](int64_t slot, int64_t count) {
      out.prefixes.push_back({out.prefix_rows, slot, count});
      out.prefix_rows += count;
    });
    if (piece.from > 0) out.prefixes.back().before = piece.prompt->slot_of(piece.from - 1);
  }
  int32_t prefix = 0;
  for (const Piece& piece : pieces) {
    add_segments(piece, int32_t(out.prefix_rows + int64_t(out.ids.size())), prefix, out);
    prefix += int32_t(prefix_of(piece));
    out.max_context = std::max(out.max_context, int32_t(piece.to));
    if (g_.cache.with_residuals() || (g_.cache.coded() && piece.completes())) {
      const int64_t first = g_.cache.with_residuals() ? piece.from : piece.prompt->recent_from(), count = piece.to - first;
      out.recent_runs.emplace_back(int64_t(out.ids.size()) + first - piece.from, count);
      out.recent.resize(out.ids.size() + size_t(piece.count()));
      for (int64_t i = 0; i < count; i++) out.recent[out.recent.size() - size_t(count - i)] = int32_t(piece.prompt->recent + i);
    }
    for (int64_t j = piece.from; j < piece.to; j++) {
      out.ids.push_back(piece.prompt->tokens[size_t(j)]);
      out.positions.push_back(int32_t(j));
      out.slots.push_back(int32_t(piece.prompt->slot + j - piece.prompt->shared));
    }
  }
  return out;
}

int64_t Prefill::prefix_of(const Piece& piece) const {
  return g_.cache.coded() ? Cache::block_start(piece.to - 1, piece.prompt->family.prefix) : piece.from;
}

// row: of the piece's first token. prefix: first row of its prefix.
void Prefill::add_segments(const Piece& piece, int32_t row, int32_t prefix, Packed& to) const {
  const int64_t last = prefix_of(piece), whole = piece.prompt->family.prefix;
  for (int64_t from = piece.from, end; from < piece.to; from = end) {
    end = from < last ? Cache::block_start(from + Cache::BLOCK, whole) : piece.to;
    if (end == 0) end = (whole + Cache::BLOCK - 1) / Cache::BLOCK * Cache::BLOCK;
    const int32_t begin = row + int32_t(from - piece.from), two_way = from == 0 ? int32_t(whole) : 0;
    to.segments.push_back(
        {begin, begin + int32_t(end - from), prefix, prefix + int32_t(from), int32_t(to.segments.size()), two_way});
  }
}

// DeviceBatch::previous. The first row of a piece that continues a prompt reads the cached values of its previous token;
// their row comes after the row for tokens without a previous one.
std::vector<int32_t> Prefill::rows_before(const std::vector<Piece>& pieces, int64_t tokens) {
  std::vector<int32_t> out;
  int32_t cached = int32_t(tokens) + 1;
  for (const Piece& piece : pieces) {
    out.push_back(piece.from > 0 ? cached++ : int32_t(tokens));
    for (int64_t j = piece.from + 1; j < piece.to; j++) out.push_back(int32_t(out.size()) - 1);
  }
  return out;
}

void Prefill::run_pieces(const std::vector<Piece>& pieces) {
  Model& model = g_.model;
  const Packed packed = pack(pieces);
  const auto& device = model.device;
  const int64_t N = int64_t(packed.ids.size());
  const int32_t count = int32_t(packed.segments.size());
  const int first = pieces[0].prompt->loop, loops = g_.cache.shared() ? 1 : pieces[0].prompt->family.loops;
  DeviceBatch batch{N,
                    upload(device, memory_.ids, packed.ids),
                    upload(device, memory_.positions, packed.positions),
                    upload(device, memory_.segments, packed.segments),
                    count,
                    count,
                    packed.max_context,
                    packed.max_context - 1};
  batch.previous = upload(device, memory_.previous, rows_before(pieces, N));
  if (g_.cache.shared() && model.weights().adapter_loops > 0) batch.loops.push_back({0, N, first});
  if (first == 0) {
    batch.states = initial_states(pieces, N);
    add_vectors(pieces, batch);
  }
  CacheUse use = g_.cache.prompts(upload(device, memory_.slots, packed.slots), packed.prefixes.data(),
                                  int32_t(packed.prefixes.size()), packed.prefix_rows);
  use.coded.rows = upload(device, memory_.recent, packed.recent);
  use.coded.runs = packed.recent_runs;
  use.coded.loops = loops;
  reserve(pieces);
  Stack stack(model, model.weights(), batch, loops, Stack::Keep::nothing, &use);
  if (first == 0) stack.forward_begin(Stack::Registers(stack.inputs()));
  else load_states(pieces, stack.inputs());
  stack.forward_loops([&](int t) { keep_last(pieces, stack.outputs(t), first + t); });
  if (g_.reads_with_blocks && first + loops == pieces[0].prompt->family.loops) stack.forward_last_read();
  if (g_.cache.shared()) keep_states(pieces, stack.outputs(0));
  if (g_.cache.with_residuals()) encode(pieces);
  advance(pieces);
  g_.count([&](SchedulerStats& s) {
    if (first == 0) s.prefilled += N;
  });
}

// Allocates all memory that outlives the pieces before anything changes.
void Prefill::reserve(const std::vector<Piece>& pieces) {
  size_t tokens = 0;
  for (const Piece& piece : pieces) tokens += size_t(piece.count());
  g_.cache.reserve_tokens(tokens);
  for (const Piece& piece : pieces) {
    Prompt& p = *piece.prompt;
    const size_t bytes = g_.registers() * g_.state_bytes;
    if (!p.last) p.last = Buffer(g_.model.device, size_t(p.family.loops) * bytes);
    if (g_.cache.shared() && !p.states) p.states = Buffer(g_.model.device, size_t(p.length()) * bytes);
  }
}

const void* Prefill::initial_states(const std::vector<Piece>& pieces, int64_t tokens) {
  const Architecture& a = g_.architecture();
  if (!begins_with_state(a)) return nullptr;
  const size_t D = size_t(a.hidden);
  std::vector<double> values(size_t(tokens) * D);
  double* out = values.data();
  for (const Piece& piece : pieces)
    for (int64_t j = piece.from; j < piece.to; j++, out += D) {
      const Prompt& p = *piece.prompt;
      if (!p.initial.given.empty()) std::copy_n(&p.initial.given[size_t(j) * D], D, out);
      else if (!p.initial.zeros) p.state_keys[size_t(j)].draw(a, p.initial.seed, out);
    }
  return upload(g_.model.device, memory_.states, rounded(g_.model.dt, values));
}

void Prefill::add_vectors(const std::vector<Piece>& pieces, DeviceBatch& batch) {
  VectorRuns found;
  int64_t row = 0;
  for (const Piece& piece : pieces)
    for (int64_t j = piece.from; j < piece.to; j++) found.add(piece.prompt->vectors, j, row++, g_.architecture().hidden);
  if (found.runs.empty()) return;
  batch.vectors = upload(g_.model.device, memory_.vectors, rounded(g_.model.dt, found.values));
  batch.vector_runs = std::move(found.runs);
}

void Prefill::copy(void* to, const void* from, int64_t states) {
  g_.model.device->run(&LoopBackend::copy, "states of a prompt", to, from, size_t(states) * g_.state_bytes);
}

void Prefill::load_states(const std::vector<Piece>& pieces, const Stack::Registers& inputs) {
  for (size_t r = 0; r < g_.registers(); r++) {
    size_t row = 0;
    for (const Piece& piece : pieces) {
      const Prompt& p = *piece.prompt;
      copy(static_cast<char*>(inputs[r]) + row * g_.state_bytes,
           p.states.at((r * size_t(p.length()) + size_t(piece.from)) * g_.state_bytes), piece.count());
      row += size_t(piece.count());
    }
  }
}

void Prefill::keep_states(const std::vector<Piece>& pieces, const Stack::Registers& outputs) {
  for (size_t r = 0; r < g_.registers(); r++) {
    const char* from = static_cast<const char*>(outputs[r]);
    for (const Piece& piece : pieces) {
      Prompt& p = *piece.prompt;
      copy(p.states.at((r * size_t(p.length()) + size_t(piece.from)) * g_.state_bytes), from, piece.count());
      from += size_t(piece.count()) * g_.state_bytes;
    }
  }
}

// Keeps the registers of each prompt's last token after loop `loop`. The first new token is read from them.
void Prefill::keep_last(const std::vector<Piece>& pieces, const Stack::Registers& outputs, int loop) {
  const size_t R = g_.registers();
  size_t end = 0;
  for (const Piece& piece : pieces) {
    end += size_t(piece.count());
    if (!piece.completes()) continue;
    for (size_t r = 0; r < R; r++)
      copy(piece.prompt->last.at((size_t(loop) * R + r) * g_.state_bytes),
           static_cast<const char*>(outputs[r]) + (end - 1) * g_.state_bytes, 1);
  }
}

void Prefill::encode(const std::vector<Piece>& pieces) {
  std::vector<LoopResidualToken> tokens;
  for (const auto& [prompt, from, to] : pieces)
    for (int64_t i = 0; i < to - from; i++)
      tokens.push_back({int32_t(prompt->recent + i), int32_t(prompt->slot + from - prompt->shared + i), prompt->family.loops});
  g_.cache.encode(tokens);
}

void Prefill::advance(const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) {
    Prompt& p = *piece.prompt;
    p.done = piece.to;
    if (!piece.completes()) continue;
    p.ready = !g_.cache.shared() || ++p.loop == p.family.loops;
    if (p.ready) p.states = Buffer();
    else p.done = 0;
  }
}

}  // namespace looplm
