// The prompts of requests. Equal active prompts run only once. The part that a new prompt shares with a cached one does not
// run again.
#pragma once
#include "rows.h"

namespace looplm {

class Prompts {
 public:
  explicit Prompts(Generation& generation) : g_(generation) {}

  // A new prompt, and what it found in the prompt tree.
  struct Beginning {
    std::unique_ptr<Prompt> prompt;
    PromptNode* found = nullptr;   // held until the prompt has its slots
    PromptNode* shared = nullptr;  // `found` or one of its ancestors: its tokens and those before it are borrowed, the rest
                                   // is copied
  };
  // The active prompt that the request shares; NULL if there is none.
  Prompt* find(const GenerateRequest& request) const;
  Beginning begin(const GenerateRequest& request, bool with_tree);
  Prompt* enter(Beginning beginning, const GenerateRequest& request, int64_t slot);

 private:
  bool may_share(const GenerateRequest& request) const {
    return g_.tree.enabled() && request.vectors.tokens.empty() && request.states.given.empty();
  }
  PromptFamily family_of(const GenerateRequest& request) const;
  int64_t common_with_parent(const GenerateRequest& request) const;
  void copy_from_parent(Prompt& prompt, const GenerateRequest& request, int64_t common);
  bool same_given(const InitialStates& a, const InitialStates& b, int64_t tokens) const;
  std::unique_ptr<Prompt> make(const GenerateRequest& request) const;
  // For families without bidirectional prompts the prefix is 0.
  int64_t prefix_of(const GenerateRequest& request) const {
    if (!g_.architecture().prefix_sees_itself) return 0;
    return request.prefix > 0 ? request.prefix : int64_t(request.prompt.size());
  }

  Generation& g_;
};

}  // namespace looplm
