// Generation for many requests at once, scheduled by loop (math.md §7): every pass over the weights takes each row under way one
// loop further, at whatever loop it is. Rows that leave the loops go to the head, their next token enters with the next pass, and
// finished rows make room for waiting requests.
//
// request     what is asked and answered          admission    who begins, and room in the cache for it
// prefill     prompts, into the cache             decode       rows under way, one loop a pass
// prompts     what they have in common        prompt_tree  beginnings in the cache
// token_head  exit rules, head and sampling       speculation  drafts
// exit_rule   the rules, one entry each           cache        keys and values of all rows
#pragma once
#include <memory>

#include "../model.h"
#include "request.h"

namespace looplm {

struct SchedulerOptions {
  int max_rows = 16;          // sequences that generate at the same time; the others wait in the order in which they came
  int64_t max_tokens = 0;     // cached tokens at the same time, 0: as many as fit in memory
  int loops = 0;              // the most any request may use; 0: the model's
  bool shared_cache = false;  // one plane per layer instead of one per (layer, loop)
  bool force = false;         // shared_cache for a family that was not made for it
  int cache_bits = 0;         // of keys and values: 4 or 8; 0: the model's dtype
  int residual_bits = 0;      // of the differences of earlier loops to the last: 2; 0: all loops have cache_bits
  // Tokens of ended prompts that stay in the cache for others that begin alike, the least recently used go first. 0: none, -1: as
  // many as a quarter of the free memory has room for.
  int64_t prompt_cache = 0;
  int64_t prefill_tokens = 512;  // prompt tokens run between two passes of the rows under way
};

struct SchedulerStats {
  int64_t rows = 0, waiting = 0;         // requests that generate, and that wait for room
  int64_t cached_tokens = 0, slots = 0;  // of the cache: in use (prompts, and room for the answers), and there
  int64_t passes = 0, pass_rows = 0;     // passes of one loop so far, and the rows in all of them
  int64_t replayed_passes = 0;           // of them, those that the device replayed from a recording (a CUDA graph)
  int64_t whole_tokens = 0;              // tokens whose loops were one call of the device
  int64_t kept = 0, evicted = 0;         // ended requests in the cache, and those that made room for others so far
  int64_t restarted = 0;                 // times that a row found no memory and began again once others had ended
  int64_t prefilled = 0, reused = 0;     // tokens of prompts that ran so far, and that the cache had
  int64_t hits = 0, retained = 0;        // prompts that found their beginning so far; tokens of ended prompts in the cache
  int64_t drafted = 0, accepted = 0;     // positions drafted ahead, and those of them that were kept
};

// Requests come and go from any thread; `run` is called from one thread at a time. Equal prompts under way run once and share
// their part of the cache. The model's parameters must not change while requests are under way.
class Scheduler {
 public:
  Scheduler(std::shared_ptr<Model> model, const SchedulerOptions& options);
  ~Scheduler();

  int64_t add(GenerateRequest request);  // throws INVALID_ARGUMENT, OUT_OF_MEMORY when the device is too small for it
  // Takes effect before the next pass: the row and its cache are free, and nothing more is reported. With `keep` a row that has
  // tokens stays in the cache as if it had ended, where its request asked for that.
  void cancel(int64_t request, bool keep = false);
  // For the next draw of a request whose LogitOptions ask for it. May come before the row is there or after it has left the
  // loops.
  void answer(int64_t request, HostAnswer answer);
  // Runs until there is something to report of the kind that is asked for, or until all rows wait for answers. Returns what
  // happened, in the order of the requests. A request that finds no memory waits while others run, begins again when it has
  // begun, and fails alone when none does. When this throws, all requests are gone.
  std::vector<GenerateEvent> run(Until until);
  SchedulerStats stats() const;
  LoopDType dtype() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace looplm
