// Generation requests and the events that answer them.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../sequences.h"  // defines: InputVectors
#include "exit_rule.h"

namespace looplm {

class Model;

struct Sampling {
  double temperature = 1;  // 0: greedy
  int top_k = 0;
  double top_p = 1, min_p = 0;
  uint64_t seed = 0;
  bool operator==(const Sampling&) const = default;
};

// Initial states, for architectures whose program has `state` steps: given for every position as [prompt + max_new_tokens,
// D], or drawn from (seed, the tokens up to the position, channel), as in scoring.
struct InitialStates {
  std::vector<double> given;
  uint64_t seed = 0;
  bool zeros = false;
};

// Changes to the logits before top-k, top-p and min-p, in this order: biases, penalties, the host's answer. Exit rules and
// reported log-probabilities use the unchanged logits.
struct LogitOptions {
  std::vector<std::pair<int32_t, double>> biases;  // -infinity bans a token
  double repetition = 1;  // penalty of tokens in the prompt or drawn: positive logits are divided by it, negative ones
                          // multiplied
  double frequency = 0, presence = 0;  // subtracted per occurrence among drawn tokens; subtracted once if drawn
  // What to ask the host (the caller's program) for before every draw. mask: the tokens that may be drawn. logits:
  // replacement logits.
  enum class Host { none, mask, logits } host = Host::none;
  bool penalise() const { return repetition != 1 || frequency != 0 || presence != 0; }
};

struct GenerateRequest {
  std::vector<int32_t> prompt;
  int max_new_tokens = 16;
  Sampling sampling;
  LogitOptions logits;
  ExitOptions exit;
  InitialStates states;
  InputVectors vectors;  // for tokens of the prompt
  std::vector<int32_t> stop_tokens;
  int32_t sequence = 0;  // a draw depends only on (seed, sequence, position)
  int alternatives = 0;  // how many of the most probable tokens to report with each new token
  // Self-speculation: drafts `draft_tokens` positions with `draft_loops` loops each. Then the remaining loops run over all of
  // them at once, and those tokens are kept that full depth would have drawn. 0: off.
  int draft_loops = 0, draft_tokens = 0;
  // Wavefront decoding, if request and model allow it (wavefront.h).
  bool wavefront = false;
  // Keeps keys and values in the cache after the request has ended, until it is cancelled or others need the slots.
  bool keep = false;
  // An ended request that was kept; 0: none. Its longest common prefix with this prompt is taken from the cache.
  int64_t parent = 0;
  int64_t prefix = 0;  // tokens at the prompt's start that attend to each other in both directions, if the family has that;
                       // 0: all
  bool release_parent = false;  // release the parent as soon as this request has begun
  int reported = 0;             // for a restarted request: how many of its tokens have already been reported
};

// When Scheduler::run returns: when no request is left, when one has ended, or when there is a new token.
enum class Until { idle, finish, token };

enum class Finish { none, length, stop, failed };

struct GeneratedToken {
  int32_t token;
  // Over the full vocabulary, at the sampling temperature (1 if greedy), before LogitOptions: the same value as in training.
  double logprob;
  int32_t loop;                                          // 1-based: the loop after which it was drawn
  std::vector<std::pair<int32_t, double>> alternatives;  // most probable first
};
struct GenerateEvent {  // what happened to a request since the last event
  int64_t request;
  std::vector<GeneratedToken> tokens;
  Finish finish = Finish::none;
  std::string failure;         // error message of a failed request: it ran out of memory
  std::vector<double> logits;  // [V], for a request with Host::logits: its next draw waits for the answer
  int64_t reused = 0;          // set with the tokens: how many prompt tokens came from the cache
};

// The host's answer for a request's next draw, as its LogitOptions ask.
struct HostAnswer {
  std::vector<int32_t> allowed;  // bit mask: bit v % 32 of word v / 32 allows token v
  std::vector<double> logits;    // [V]
  bool empty() const { return allowed.empty() && logits.empty(); }
};

inline constexpr char generation_remedy[] =
    "lower maxNewTokens, shorten the prompt, or use cacheType 'int4', kv 'shared' or bfloat16";

// Throws INVALID_ARGUMENT. loops, shared: options of the scheduler and its cache.
void check_request(const Model& model, const GenerateRequest& request, int loops, bool shared);

}  // namespace looplm
