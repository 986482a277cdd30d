// The prompts and rows of the active requests, and the state that the parts of a scheduler share. A row is a request that
// generates: one sequence of the decoding batch.
#pragma once
#include <map>
#include <memory>
#include <mutex>

#include "../initial_state.h"
#include "cache.h"
#include "logit_edits.h"
#include "prompt_tree.h"
#include "scheduler.h"
#include "wave.h"

namespace looplm {

// A prompt that one or more rows share. The keys of its first `shared` tokens may belong to other prompts; its own keys are
// in the slots [slot, slot + own()).
struct Prompt {
  std::vector<int32_t> tokens;
  InputVectors vectors;
  InitialStates initial;
  std::vector<StateKey> state_keys;  // one per position, if initial states are drawn
  PromptFamily family;
  int64_t parent = 0;                  // the ended request whose slots its first tokens were copied from; 0: none
  std::vector<LoopCacheRun> borrowed;  // slots of its first `shared` tokens
  int64_t shared = 0;
  int64_t slot = 0;
  PromptNode* node = nullptr;  // in the prompt tree; NULL: its slots are freed with it
  Prompt* source = nullptr;    // active prompt that still has to run the shared tokens; held
  int64_t reused = 0;          // number of its tokens that came from the cache
  int64_t done = 0;            // tokens whose keys are in the cache; if loops share a plane, those of the current loop
  int users = 0;
  Buffer last;    // act [loops, R, D]: the registers of its last token after every loop; complete when the whole prompt has run
  int loop = 0;   // only if loops share a plane: loops that all tokens have finished,
  Buffer states;  // act [R, tokens, D]: and the input registers of the next loop
  bool ready = false;  // all tokens have run all loops
  int64_t recent = 0;  // Quantized cache: the recent slot of token recent_from(); the following tokens have the following
                       // slots. With residuals each block uses these slots while it runs.
  int64_t length() const { return int64_t(tokens.size()); }
  int64_t own() const { return length() - shared; }
  int64_t recent_from() const { return Cache::block_start(length() - 1, family.prefix); }
  int64_t written() const { return (ready || loop > 0 ? length() : done) - shared; }  // of its own tokens
  // Calls f(first slot, count) for every run of slots that holds tokens of [from, to).
  template <class F>
  void for_runs(int64_t from, int64_t to, F f) const {
    int64_t at = 0;  // number of tokens before a run
    const auto part = [&](int64_t first, int64_t length) {
      const int64_t begin = std::max(from, at), end = std::min(to, at + length);
      if (begin < end) f(first + begin - at, end - begin);
      at += length;
    };
    for (const LoopCacheRun& run : borrowed) part(run.begin, run.length);
    part(slot, own());
  }
  int64_t slot_of(int64_t token) const {
    int64_t found = slot;
    for_runs(token, token + 1, [&](int64_t at, int64_t) { found = at; });
    return found;
  }
};

// A request that generates.
struct Row {
  int64_t id;
  GenerateRequest request;
  int max_loops;
  Prompt* prompt;
  int64_t slot;                      // first slot of its new tokens
  int32_t index;                     // index in buffers that have a place for every row
  StateKey state_key = {};           // for its newest token
  bool started = false;              // its first token was drawn, or waits for the host's answer
  int made = 0;                      // number of new tokens
  int32_t newest = -1;               // the newest token; -1: none
  LogitEdits edits = {};             // for its next draw
  HostAnswer answer = {};            // for its next draw; empty: not arrived yet
  std::vector<int32_t> drafts = {};  // tokens drafted after the newest one
  Wave wave = {};
  bool verifying = false;
  std::vector<int32_t> generated = {};  // all new tokens, if the row will be kept
  // Quantized cache: a ring of `recent_slots` recent slots from `recent` on; a token uses the one at position % recent_slots.
  int64_t recent = 0, recent_slots = 0;
  // The slots of the first `of_prompt` tokens of its prompt and of its own first `of_own` tokens. plane: added to each slot
  // number.
  LoopCacheContext context(int64_t of_prompt, int32_t of_own, int32_t plane) const {
    LoopCacheContext out{};
    size_t r = 0;
    prompt->for_runs(0, of_prompt, [&](int64_t first, int64_t count) {
      out.runs[r++] = {plane + int32_t(first), int32_t(count)};
    });
    out.runs[r] = {plane + int32_t(slot), of_own};
    return out;
  }
  // The same for a quantized cache: the slots of the records of earlier blocks, and the recent slots of the newest block.
  struct Contexts {
    LoopCacheContext records, recent;
  };
  Contexts contexts(int64_t of_prompt, int32_t of_own, int32_t plane, int32_t recent_plane) const;
  int64_t recent_slot(int64_t position) const { return recent_slots > 0 ? recent + position % recent_slots : 0; }
  // Number of tokens whose keys and values are cached. The newest token is only added when the row continues.
  int64_t cached() const { return prompt->length() + made - 1; }
  bool waits_for_host() const { return request.logits.host != LogitOptions::Host::none && answer.empty(); }
};

// A token of a row on its way through the loops.
struct ActiveToken {
  Row* row;
  int32_t ahead;  // number of drafted tokens between it and the row's newest token
  int loop;       // number of finished loops
  int32_t token;
  ExitState exit = {};
  Readouts readouts = {};
  int32_t made() const { return row->made + ahead; }  // number of the row's new tokens up to and including this one
  int32_t position() const { return int32_t(row->prompt->tokens.size()) + made() - 1; }
};

inline ActiveToken fresh_token(Row& row, int32_t ahead, int32_t token) {
  return {&row, ahead, 0, token, {}, {row.wave.pace.reads()}};
}

struct Generation {
  Generation(Model& model, const SchedulerOptions& options);

  Model& model;
  const SchedulerOptions options;
  const int loops;
  const size_t state_bytes;  // bytes of one register of one token
  Cache cache;
  PromptTree tree;
  std::map<int64_t, Row> rows;  // by request id: older first
  std::map<int64_t, Row> kept;  // ended requests whose keys and values are still cached
  std::vector<std::unique_ptr<Prompt>> prompts;
  int32_t row_indices = 0;  // how many indices are in use or free
  uint64_t releases = 0;    // number of rows that have ended
  std::map<int64_t, GenerateEvent> events;

  const Architecture& architecture() const { return model.config; }
  size_t registers() const { return size_t(model.config.registers); }
  // Slots of a row. Its last token is never attended to, so it has no slot. If readouts have blocks, one more slot holds the
  // readout of the prompt's last token, because rows may share the prompt. A row that ended before its first token has none.
  int64_t row_slots(const GenerateRequest& request) const {
    return std::max(0, request.max_new_tokens - 1 + (reads_with_blocks ? 1 : 0));
  }
  const bool reads_with_blocks;
  int64_t recent_slots(const GenerateRequest& request) const;  // of a row
  int64_t recent_slots(const Prompt& prompt) const;
  // Called when a token exits. Copies its keys and values to the deeper loops. With residuals, encode_exited() makes its
  // records later, before the next token runs.
  void exit_token(const Row& row, const ActiveToken& token);
  void encode_exited();
  // The largest number of tokens after the newest one that may run at the same time. With residuals the tokens of a block can
  // run only when all earlier blocks have their records.
  int64_t most_ahead(const Row& row) const;
  int loops_of(const GenerateRequest& request) const { return request.exit.max_loops > 0 ? request.exit.max_loops : loops; }

  int32_t acquire_index();
  void trim_indices();     // shrinks the range of indices to those in use, so that buffers with a place per row can be smaller
  void finish(Row& row);   // releases the row, or keeps its slots in the cache if its request asks for that
  void release(Row& row);  // frees its slots, its share of the prompt, and the row itself
  void release_prompt(Prompt& prompt);  // releases it for one of its holders
  void forget(int64_t kept);
  void clear() noexcept;

  void answer(int64_t request, HostAnswer answer);  // callable from any thread
  void collect_answers();                           // moves arrived answers to their rows
  // Drops answers that still have no row, unless busy(): then their requests have ended.
  template <class Busy>
  void drop_answers_unless(Busy busy) {
    std::lock_guard lock(answers_mutex_);
    if (!busy()) answers_.clear();
  }

  GenerateEvent& event(int64_t request);
  // Adds a new token to a row. Returns false if it is the last one.
  bool add_token(Row& row, GeneratedToken token);
  void fail(int64_t request, const std::string& why);
  bool reached(Until until) const;
  std::vector<GenerateEvent> collect_events();

  // Counters; any thread may read them.
  template <class Change>
  void count(Change change) {
    std::lock_guard lock(mutex_);
    change(stats_);
  }
  SchedulerStats stats() const {
    std::lock_guard lock(mutex_);
    return stats_;
  }

 private:
  Cache::Runs written() const;
  void release_cache(Row& row);
  void release_indices(const Row& row);
  std::vector<int32_t> free_indices_;
  std::vector<LoopResidualToken> left_;  // tokens that have exited but have no records yet
  mutable std::mutex mutex_;
  SchedulerStats stats_;
  std::mutex answers_mutex_;
  std::map<int64_t, HostAnswer> answers_;  // answers that have arrived but are not with their rows yet
};

// ---- Buffers

// Uploads values. They stay valid until the next call with the same buffer.
template <class T>
const T* upload(const std::shared_ptr<Device>& device, Buffer& buffer, const std::vector<T>& values) {
  buffer.reserve(device, values.size() * sizeof(T) + sizeof(T));
  if (!values.empty()) buffer.upload(values.data(), values.size() * sizeof(T));
  return buffer.as<T>();
}

}  // namespace looplm
