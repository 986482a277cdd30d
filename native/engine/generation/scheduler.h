// Generation for many requests at once, scheduled by loop (math.md §7). Every pass over the weights runs one loop for every
// active row, whichever loop each row is at. Rows that exit go to the head, their next token starts with the next pass, and
// finished rows make room for waiting requests.
//
// request     requests and events                     admission    the queue, and cache slots for new rows
// prefill     runs prompts                            decode       decoding rows, one loop per pass
// prompts     what prompts share                      prompt_tree  prompt prefixes in the cache
// token_head  exit rules, head and sampling           speculation  drafts
// exit_rule   the rules, one entry each               cache        keys and values of all rows
#pragma once
#include <memory>

#include "../model.h"
#include "request.h"

namespace looplm {

struct SchedulerOptions {
  int max_rows = 16;          // sequences that generate at the same time; others wait in the order of arrival
  int64_t max_tokens = 0;     // most cached tokens at the same time; 0: as many as fit in memory
  int loops = 0;              // the most loops any request may use; 0: as in the model's configuration
  bool shared_cache = false;  // one cache plane per layer instead of one per (layer, loop)
  bool force = false;         // allow shared_cache for a family that was not trained for it
  int cache_bits = 0;         // bits of keys and values: 4 or 8; 0: the model's dtype
  int residual_bits = 0;      // 2: bits of the differences between earlier loops and the last; 0: all loops use cache_bits
  bool pruned_keys = false;   // with 4 bits: keep the codes of half the numbers of each group of keys
  // Tokens of ended prompts that stay in the cache for prompts with the same prefix; the least recently used go first. 0:
  // none, -1: as many as fit into a quarter of the free memory.
  int64_t prompt_cache = 0;
  int64_t prefill_tokens = 512;  // prompt tokens that run between two passes of the decoding rows
};

struct SchedulerStats {
  int64_t rows = 0, waiting = 0;         // requests that generate, and requests that wait
  int64_t cached_tokens = 0, slots = 0;  // of the cache: slots in use (prompts, and reserved for answers), and slots in total
  int64_t passes = 0, pass_rows = 0;     // passes of one loop so far, and the sum of their rows
  int64_t replayed_passes = 0;           // passes that the device replayed from a recording (a CUDA graph)
  int64_t whole_tokens = 0;              // tokens whose loops all ran in one call of the device
  int64_t kept = 0, evicted = 0;         // ended requests in the cache, and kept requests that were evicted so far
  int64_t restarted = 0;                 // times that a row ran out of memory and was restarted
  int64_t prefilled = 0, reused = 0;     // prompt tokens that ran so far, and prompt tokens taken from the cache
  int64_t hits = 0, retained = 0;        // prompts that found a cached prefix so far; tokens of ended prompts in the cache
  int64_t drafted = 0, accepted = 0;     // tokens drafted so far, and those of them that were kept
};

// Any thread may add and cancel requests; only one thread at a time may call `run`. Equal active prompts run once and share
// their slots. Do not change the model's parameters while requests are active.
class Scheduler {
 public:
  Scheduler(std::shared_ptr<Model> model, const SchedulerOptions& options);
  ~Scheduler();

  int64_t add(GenerateRequest request);  // throws INVALID_ARGUMENT, or OUT_OF_MEMORY if the device is too small for it
  // Takes effect before the next pass: the row and its slots are freed, and no more events are reported. With `keep`, a row
  // that has tokens stays in the cache as if it had ended, if its request asked for that.
  void cancel(int64_t request, bool keep = false);
  // Answers the next draw of a request whose LogitOptions ask the host. It may arrive before the row exists or before it
  // exits.
  void answer(int64_t request, HostAnswer answer);
  // Runs until there is an event of the requested kind, or until all rows wait for answers. Returns the events in the order
  // of the requests. A request that runs out of memory waits while others run; if it has already begun, it restarts. It fails
  // only if no other request is running. If this function throws, all requests are dropped.
  std::vector<GenerateEvent> run(Until until);
  SchedulerStats stats() const;
  LoopDType dtype() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace looplm
