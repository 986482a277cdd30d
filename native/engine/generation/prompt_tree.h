// A radix tree of the prompts in the cache, by their tokens. A node is a run of tokens whose keys and values are in
// consecutive slots; its ancestors have the tokens before it. An active prompt holds the node with its last token, and so all
// ancestors. Nodes that no prompt holds stay for later prompts, until their slots are needed; the least recently used go
// first.
#pragma once
#include <compare>
#include <map>
#include <memory>
#include <vector>

#include "cache.h"

namespace looplm {

struct Prompt;

// Prompts can share their first tokens only if all of these are equal.
struct PromptFamily {
  uint64_t version = 0, base_version = 0, layout = 0, placement = 0;  // of the model's parameters
  int loops = 0;
  bool zero_states = false;  // of the initial states
  uint64_t state_seed = 0;
  int64_t prefix = 0;  // number of tokens at the start that attend to each other in both directions
  auto operator<=>(const PromptFamily&) const = default;
};

struct PromptNode {
  std::vector<int32_t> tokens;  // empty for a root
  int64_t begin = 0;            // number of tokens before this node
  int64_t slot = 0;             // slot of the first token
  PromptNode* parent = nullptr;
  Prompt* writer = nullptr;  // the active prompt that still writes these slots; NULL: they are complete
  int users = 0;             // prompts that hold this node or a descendant
  uint64_t used = 0;         // time of the last use, by the tree's clock
  std::vector<std::unique_ptr<PromptNode>> children = {};
  int64_t length() const { return int64_t(tokens.size()); }
  int64_t end() const { return begin + length(); }
  int64_t written() const;  // number of its tokens whose keys are in the cache
};

class PromptTree {
 public:
  static constexpr int64_t LEAST = 16;  // minimum number of tokens that are worth sharing

  // most: how many tokens stay that no prompt holds; 0: nothing is shared.
  PromptTree(Cache& cache, int64_t most) : cache_(cache), most_(most) {}

  bool enabled() const { return most_ > 0; }
  // The node that ends with the longest shared prefix of `tokens` that is cached or will be, at most `most` tokens. Splits a
  // node if necessary. NULL if the prefix has fewer than LEAST or fewer than `least` tokens.
  PromptNode* find(const PromptFamily& family, const std::vector<int32_t>& tokens, int64_t least, int64_t most);
  void hold(PromptNode* node);
  void drop(PromptNode* node);
  // Adds a held node for the tokens of `writer` from token `from` on. parent: the held node before it; NULL: it starts a
  // sequence.
  PromptNode* add(const PromptFamily& family, PromptNode* parent, Prompt& writer, int64_t from, int64_t slot);
  // Called when the prompt that held `leaf` has ended. Tokens that have not run are removed.
  void leave(PromptNode* leaf);
  // Frees the slots of the least recently used node that nothing holds. Returns false if all nodes are held.
  bool evict();
  void clear() noexcept;

  Cache::Runs written() const;
  int64_t retained() const { return retained_; }  // number of tokens that no prompt holds
  // Where the tokens up to the end of `node` are in the cache, in as few runs as possible. from: the first token wanted; a
  // node must begin with it.
  static std::vector<LoopCacheRun> runs(const PromptNode* node, int64_t from = 0);

 private:
  PromptNode* split(PromptNode* node, int64_t count);
  bool settle_writer(PromptNode* leaf);
  void remove(PromptNode* leaf);
  bool superseded(PromptNode* leaf);
  void touch(PromptNode* node);

  Cache& cache_;
  const int64_t most_;
  int64_t retained_ = 0;
  uint64_t clock_ = 0;
  std::map<PromptFamily, std::unique_ptr<PromptNode>> roots_;
};

}  // namespace looplm
