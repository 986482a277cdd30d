// What a caller asks of generation, and what it hears back.
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

// Of architectures whose program has `state` steps: given for every position, [prompt + max_new_tokens, D], or drawn from (seed,
// the tokens up to the position, channel), as score draws them.
struct InitialStates {
  std::vector<double> given;
  uint64_t seed = 0;
  bool zeros = false;
};

// What changes the logits before the filters, in this order: biases, the penalties, what the host answers. Exit rules and the
// log-probabilities that are reported know nothing of it.
struct LogitOptions {
  std::vector<std::pair<int32_t, double>> biases;  // -infinity: the token is never drawn
  double repetition = 1;                           // of tokens of the prompt and new ones: positive logits / it, others · it
  double frequency = 0, presence = 0;              // per time that a token was drawn; once when it was
  // Asked of the host before every draw. mask: which tokens may be drawn. logits: the logits that take the place of these.
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
  InputVectors vectors;  // of tokens of the prompt
  std::vector<int32_t> stop_tokens;
  int32_t sequence = 0;  // a draw depends on (seed, sequence, position) alone
  int alternatives = 0;  // so many of the most probable tokens are reported with each token
  // Self-speculation: `draft_tokens` positions are drafted with `draft_loops` loops each, then the remaining loops run over all
  // of them at once and keep what full depth would have drawn. 0: off.
  int draft_loops = 0, draft_tokens = 0;
  // Wavefront decoding, where the request and the model allow it (wavefront.h).
  bool wavefront = false;
  // Keys and values stay in the cache when the request has ended, until it is cancelled or others need the room.
  bool keep = false;
  // An ended request that was kept, 0: none. The longest beginning that the prompt shares with its tokens is taken from the
  // cache.
  int64_t parent = 0;
  int64_t prefix = 0;           // tokens at the prompt's start that see each other, where the family has that; 0: all
  bool release_parent = false;  // once this request has begun
  int reported = 0;             // of a request that begins again: so many tokens its events have had
};

// When a run returns: when no request is left, or already when one has ended, or when there is a token.
enum class Until { idle, finish, token };

enum class Finish { none, length, stop, failed };

struct GeneratedToken {
  int32_t token;
  // Full vocabulary, at the sampling temperature (1 when greedy), before LogitOptions: what training computes.
  double logprob;
  int32_t loop;                                          // 1-based, the loop it was read from
  std::vector<std::pair<int32_t, double>> alternatives;  // most probable first
};
struct GenerateEvent {  // what became of a request since the last time
  int64_t request;
  std::vector<GeneratedToken> tokens;
  Finish finish = Finish::none;
  std::string failure;         // of a request that failed: there was no memory for it
  std::vector<double> logits;  // [V], of a request with Host::logits: its next draw waits for the answer
  int64_t reused = 0;          // where there are tokens: those of the prompt that did not run for it
};

// The host's answer for a request's next draw: what its LogitOptions ask for.
struct HostAnswer {
  std::vector<int32_t> allowed;  // bit v % 32 of word v / 32
  std::vector<double> logits;    // [V]
  bool empty() const { return allowed.empty() && logits.empty(); }
};

inline constexpr char generation_remedy[] =
    "lower maxNewTokens, shorten the prompt, or use cacheType 'int4', kv 'shared' or bfloat16";

// Throws INVALID_ARGUMENT. loops, shared: of the scheduler and its cache.
void check_request(const Model& model, const GenerateRequest& request, int loops, bool shared);

}  // namespace looplm
