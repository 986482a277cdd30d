// The prompts and rows that requests hold, and what the parts of a scheduler share.
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

// A prompt that some rows share. The keys of its first tokens may be others'; those of its own lie in [slot, slot + own()).
struct Prompt {
  std::vector<int32_t> tokens;
  InputVectors vectors;
  InitialStates initial;
  std::vector<StateKey> state_keys;    // of its positions, where they are drawn
  int64_t prefix = 0;                  // tokens at its start that see each other, where the family has that
  int loops = 0;                       // it ran, or will run, this many
  std::vector<LoopCacheRun> borrowed;  // where the keys of its first `shared` tokens lie
  int64_t shared = 0;
  int64_t slot = 0;
  PromptNode* node = nullptr;  // in the tree of prompts; NULL: its slots go with it
  Prompt* source = nullptr;    // which has yet to run what is borrowed; it is held
  int64_t reused = 0;          // tokens that did not run for this prompt
  int64_t done = 0;            // tokens whose keys are in the cache; of a shared cache those of the loop under way
  int users = 0;
  Buffer last;         // act [loops, R, D]: the registers behind every loop at its last token, once all of it has run
  int loop = 0;        // of a shared cache: loops that all tokens have completed,
  Buffer states;       // act [R, tokens, D]: and the registers that the next loop starts from
  bool ready = false;  // every token has run at full depth
  int64_t recent = 0;  // of a cache in few bits: the recent slot of token recent_from(), behind which lie those of the others.
                       // With residuals each block lies here while it runs.
  int64_t length() const { return int64_t(tokens.size()); }
  int64_t own() const { return length() - shared; }
  int64_t recent_from() const { return Cache::block_start(length() - 1, prefix); }
  int64_t written() const { return (ready || loop > 0 ? length() : done) - shared; }  // of its own tokens
  // Where tokens [from, to) lie, run by run: f(first slot, how many).
  template <class F>
  void for_runs(int64_t from, int64_t to, F f) const {
    int64_t at = 0;  // tokens before a run
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
  int64_t slot;                      // keys of its new tokens lie from here on
  int32_t index;                     // in buffers with a place for every row
  StateKey state_key = {};           // of its newest token
  bool started = false;              // its first token was drawn
  int made = 0;                      // new tokens
  int32_t newest = -1;               // of them
  LogitEdits edits = {};             // of its next draw
  HostAnswer answer = {};            // for its next draw; empty: not there yet
  std::vector<int32_t> drafts = {};  // tokens drafted behind the newest one
  Wave wave = {};
  bool verifying = false;
  std::vector<int32_t> generated = {};  // all new tokens, where the row is kept
  // Of a cache in few bits: so many recent slots, of the token at a position the one at its remainder.
  int64_t recent = 0, recent_slots = 0;
  // The keys of the first tokens of its prompt, and of the first slots of it alone. plane: slots before them.
  LoopCacheContext context(int64_t of_prompt, int32_t of_own, int32_t plane) const {
    LoopCacheContext out{};
    size_t r = 0;
    prompt->for_runs(0, of_prompt, [&](int64_t first, int64_t count) {
      out.runs[r++] = {plane + int32_t(first), int32_t(count)};
    });
    out.runs[r] = {plane + int32_t(slot), of_own};
    return out;
  }
  // The same of a cache in few bits, up to the last of these tokens: the slots of the records, and the recent ones.
  struct Contexts {
    LoopCacheContext records, recent;
  };
  Contexts contexts(int64_t of_prompt, int32_t of_own, int32_t plane, int32_t recent_plane) const;
  int64_t recent_slot(int64_t position) const { return recent_slots > 0 ? recent + position % recent_slots : 0; }
  // Keys and values of so many tokens are there: those of the newest come when it is continued.
  int64_t cached() const { return prompt->length() + made - 1; }
  bool waits_for_host() const { return request.logits.host != LogitOptions::Host::none && answer.empty(); }
};

// One token of a row on its way through the loops.
struct ActiveToken {
  Row* row;
  int32_t ahead;  // drafted tokens before it, behind the newest real one
  int loop;       // loops completed
  int32_t token;
  ExitState exit = {};
  Readouts readouts = {};
  int32_t made() const { return row->made + ahead; }  // new tokens up to it, itself included
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
  const size_t state_bytes;  // of one register of one token
  Cache cache;
  PromptTree tree;
  std::map<int64_t, Row> rows;  // by request: older first
  std::map<int64_t, Row> kept;  // that have ended, and whose keys and values are still there
  std::vector<std::unique_ptr<Prompt>> prompts;
  int32_t row_indices = 0;  // that rows have had so far
  uint64_t releases = 0;    // rows that have gone
  std::map<int64_t, GenerateEvent> events;

  const Architecture& architecture() const { return model.config; }
  size_t registers() const { return size_t(model.config.registers); }
  // Slots of a row: its last token's keys are never read; the readout of the prompt's last token is the row's own.
  int64_t row_slots(const GenerateRequest& request) const { return request.max_new_tokens - 1 + (reads_with_blocks ? 1 : 0); }
  const bool reads_with_blocks;
  int64_t recent_slots(const GenerateRequest& request) const;  // of a row
  int64_t recent_slots(const Prompt& prompt) const;
  // A token that left behind its loop: deeper loops get its keys, and with residuals it gets its records when encode_left is
  // called, before its successor runs.
  void leave_loops(const Row& row, const ActiveToken& token);
  void encode_left();
  // With residuals, tokens of a block run when those of the blocks before have their records: the most tokens behind the newest
  // one that may run beside it.
  int64_t most_ahead(const Row& row) const;
  int loops_of(const GenerateRequest& request) const { return request.exit.max_loops > 0 ? request.exit.max_loops : loops; }

  int32_t acquire_index();
  void trim_indices();                  // buffers with a place for every row need no more than for those that are there
  void finish(Row& row);                // releases it, or keeps what is in its cache
  void release(Row& row);               // its cache and its prompt, and itself
  void release_prompt(Prompt& prompt);  // for one of those that hold it
  void forget(int64_t kept);
  void clear() noexcept;

  void answer(int64_t request, HostAnswer answer);  // from any thread
  void collect_answers();                           // to the rows that are there
  // Those left are of requests that are gone.
  template <class Busy>
  void drop_answers_unless(Busy busy) {
    std::lock_guard lock(answers_mutex_);
    if (!busy()) answers_.clear();
  }

  GenerateEvent& event(int64_t request);
  // A new token of a row; false when it is the last.
  bool add_token(Row& row, GeneratedToken token);
  void fail(int64_t request, const std::string& why);
  bool reached(Until until) const;
  std::vector<GenerateEvent> collect_events();

  // Counters, read from any thread.
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
  std::vector<LoopResidualToken> left_;  // that have left the loops and have no records yet
  mutable std::mutex mutex_;
  SchedulerStats stats_;
  std::mutex answers_mutex_;
  std::map<int64_t, HostAnswer> answers_;  // that have come and are not with their rows yet
};

// ---- Buffers of the parts

// Values on the device until the next call with the same buffer.
template <class T>
const T* upload(const std::shared_ptr<Device>& device, Buffer& buffer, const std::vector<T>& values) {
  buffer.reserve(device, values.size() * sizeof(T) + sizeof(T));
  if (!values.empty()) buffer.upload(values.data(), values.size() * sizeof(T));
  return buffer.as<T>();
}

}  // namespace looplm
