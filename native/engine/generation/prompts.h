// The prompts of requests: equal ones under way are one, and what a new one has in common with others does not run again.
#pragma once
#include "rows.h"

namespace looplm {

class Prompts {
 public:
  explicit Prompts(Generation& generation) : g_(generation) {}

  // A prompt that is to run, and what it finds in the tree of prompts.
  struct Beginning {
    std::unique_ptr<Prompt> prompt;
    PromptNode* found = nullptr;   // held until the prompt has its place
    PromptNode* shared = nullptr;  // it or one above it: its tokens and those before are borrowed, the others copied
  };
  // One under way that the request shares; NULL: there is none.
  Prompt* find(const GenerateRequest& request) const;
  Beginning begin(const GenerateRequest& request, bool with_tree);
  Prompt* enter(Beginning beginning, const GenerateRequest& request, int64_t slot);

 private:
  bool may_share(const GenerateRequest& request) const {
    return g_.tree.enabled() && request.vectors.tokens.empty() && request.states.given.empty();
  }
  PromptFamily family_of(const Prompt& prompt) const;
  int64_t common_with_parent(const Prompt& prompt, const GenerateRequest& request) const;
  void copy_from_parent(Prompt& prompt, const GenerateRequest& request, int64_t common);
  bool same_states(const InitialStates& a, const InitialStates& b, int64_t tokens) const;
  std::unique_ptr<Prompt> make(const GenerateRequest& request) const;
  // Of families without a two-way prefix all prompts are alike.
  int64_t prefix_of(const GenerateRequest& request) const {
    if (!g_.architecture().prefix_sees_itself) return 0;
    return request.prefix > 0 ? request.prefix : int64_t(request.prompt.size());
  }

  Generation& g_;
};

}  // namespace looplm
