// Generation for many requests at once, scheduled by loop (math.md §7): every pass over the weights takes each row under way one
// loop further, at whatever loop it is. Rows that leave the loops go to the head, their next token enters with the next pass, and
// finished rows give their place to waiting requests.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "model.h"

namespace looplm {

struct Sampling {
  double temperature = 1;  // 0: greedy
  int top_k = 0;
  double top_p = 1, min_p = 0;
  uint64_t seed = 0;
  bool operator==(const Sampling&) const = default;
};

// When a token leaves the loops: after the first loop t, min_loops <= t < max_loops, at which
//   gate           Σ_{s<=t} p_s >= threshold                                (math.md §1)
//   hidden_delta   |h_t - h_{t-1}| <= threshold · |h_t|, t >= 2
//   kl             KL(P_t || P_{t-1}) <= threshold nats, t >= 2             P_t = softmax(logits_t)
//   entropy        H(P_t) <= threshold nats
//   argmax_stable  argmax P_t = argmax P_{t-1}, t >= 2
// and after max_loops in any case; `fixed` has that case alone.
enum class ExitRule { fixed, gate, hidden_delta, kl, entropy, argmax_stable };
struct Exit {
  ExitRule rule = ExitRule::fixed;
  double threshold = 0;
  int min_loops = 1;
  int max_loops = 0;  // 0: the scheduler's
};

struct GenerateRequest {
  std::vector<int32_t> prompt;
  int max_new_tokens = 16;
  Sampling sampling;
  Exit exit;
  std::vector<int32_t> stop_tokens;
  int32_t sequence = 0;  // a draw depends on (seed, sequence, position) alone
  int alternatives = 0;  // so many of the most probable tokens are reported with each token
  // Self-speculation: `draft_tokens` positions are drafted with `draft_loops` loops each, then the remaining loops run over all
  // of them at once and keep what full depth would have drawn. 0: off.
  int draft_loops = 0, draft_tokens = 0;
};

enum class Finish { none, length, stop, failed };

struct GeneratedToken {
  int32_t token;
  double logprob;                                        // full vocabulary, at the sampling temperature (1 when greedy)
  int32_t loop;                                          // 1-based, the loop it was read from
  std::vector<std::pair<int32_t, double>> alternatives;  // most probable first
};
struct GenerateEvent {  // what became of a request since the last time
  int64_t request;
  std::vector<GeneratedToken> tokens;
  Finish finish = Finish::none;
  std::string failure;  // of a request that failed: there was no memory for it
};

struct SchedulerOptions {
  int max_rows = 16;             // sequences that generate at the same time; the others wait in the order in which they came
  int64_t max_tokens = 0;        // cached tokens at the same time, 0: as many as fit in memory
  int loops = 0;                 // the most any request may use; 0: the model's
  bool shared_cache = false;     // one plane per layer instead of one per (layer, loop)
  int64_t prefill_tokens = 512;  // prompt tokens run between two passes of the rows under way
};

struct SchedulerStats {
  int64_t rows = 0, waiting = 0;         // requests that generate, and that wait for a place
  int64_t cached_tokens = 0, slots = 0;  // of the cache: in use (prompts, and room for the answers), and there
  int64_t passes = 0, pass_rows = 0;     // passes of one loop so far, and the rows in all of them
  int64_t replayed_passes = 0;           // of them, those that the device replayed from a recording (a CUDA graph)
  int64_t whole_tokens = 0;              // tokens whose loops were one call of the device
  int64_t drafted = 0, accepted = 0;     // positions drafted ahead, and those of them that were kept
};

// Requests come and go from any thread; `run` is called from one thread at a time. Equal prompts under way run once and share
// their part of the cache. The model's parameters must not change while requests are under way.
class Scheduler {
 public:
  Scheduler(std::shared_ptr<Model> model, const SchedulerOptions& options);
  ~Scheduler();

  int64_t add(GenerateRequest request);  // throws INVALID_ARGUMENT, OUT_OF_MEMORY when the device is too small for it
  // Takes effect before the next pass: the row, its place and its cache are free, and nothing more is reported.
  void cancel(int64_t request);
  // Runs until no request is left or, with `until_token`, until there is something to report. Returns what happened, in the order
  // of the requests. A request that finds no memory waits while others run, and fails alone when none does. When this throws, all
  // requests are gone.
  std::vector<GenerateEvent> run(bool until_token);
  SchedulerStats stats() const;
  LoopDType dtype() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace looplm
