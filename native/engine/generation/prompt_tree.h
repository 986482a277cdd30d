// Prompts in the cache by their tokens: a radix tree. A node is a stretch of tokens whose keys and values lie in neighbouring
// slots; the tokens before them are its parents'. A prompt under way holds the node that it ends with, and so those above. Nodes
// that nobody holds stay for later prompts until others need the room, least recently used first.
#pragma once
#include <compare>
#include <map>
#include <memory>
#include <vector>

#include "cache.h"

namespace looplm {

struct Prompt;

// Prompts share their beginnings where all of this is equal, and their tokens.
struct PromptFamily {
  uint64_t version = 0, layout = 0, placement = 0;  // of the model's parameters
  int loops = 0;
  bool zero_states = false;  // the states that the loops begin with
  uint64_t state_seed = 0;
  int64_t prefix = 0;  // tokens at the start that see each other
  auto operator<=>(const PromptFamily&) const = default;
};

struct PromptNode {
  std::vector<int32_t> tokens;  // none: of a root
  int64_t begin = 0;            // tokens before them
  int64_t slot = 0;             // of the first
  PromptNode* parent = nullptr;
  Prompt* writer = nullptr;  // under way, its prompt puts the keys there; NULL: they are there
  int users = 0;             // prompts that hold it or a node below it
  uint64_t used = 0;         // when, by the tree's clock
  std::vector<std::unique_ptr<PromptNode>> children = {};
  int64_t length() const { return int64_t(tokens.size()); }
  int64_t end() const { return begin + length(); }
  int64_t written() const;  // of its tokens, those whose keys are there
};

class PromptTree {
 public:
  static constexpr int64_t LEAST = 16;  // tokens that are worth sharing

  // most: tokens that stay although nobody holds them; 0: nothing is shared.
  PromptTree(Cache& cache, int64_t most) : cache_(cache), most_(most) {}

  bool enabled() const { return most_ > 0; }
  // The node that ends with the longest beginning of `tokens`, at most `most` of them, that is there or will be. NULL: less than
  // LEAST or `least` are.
  PromptNode* find(const PromptFamily& family, const std::vector<int32_t>& tokens, int64_t least, int64_t most);
  void hold(PromptNode* node);
  void drop(PromptNode* node);
  // A node for the tokens of `writer` from token `from` on, behind `parent`, which is held for it; NULL: at the start. It is
  // held.
  PromptNode* add(const PromptFamily& family, PromptNode* parent, Prompt& writer, int64_t from, int64_t slot);
  // The prompt that held `leaf` has gone. What has not run is of no use.
  void leave(PromptNode* leaf);
  // Gives back the slots of the node that was not used for the longest time. False: all are held.
  bool evict();
  void clear() noexcept;

  Cache::Runs written() const;
  int64_t retained() const { return retained_; }  // tokens that nobody holds
  // Where the tokens up to the end of `node` lie, in as few runs as possible, from token `from` on, with which a node begins.
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
