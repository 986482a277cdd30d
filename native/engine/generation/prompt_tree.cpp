#include "prompt_tree.h"

#include <algorithm>

#include "rows.h"

namespace looplm {

namespace {

// How many of `tokens` [node.begin, most) are the first tokens of `node`.
int64_t common(const PromptNode& node, const std::vector<int32_t>& tokens, int64_t most) {
  const int64_t length = std::min(node.length(), most - node.begin);
  int64_t count = 0;
  while (count < length && node.tokens[size_t(count)] == tokens[size_t(node.begin + count)]) count++;
  return count;
}

template <class Visit>
void visit(const PromptNode& node, Visit f) {
  for (const auto& child : node.children) {
    f(*child);
    visit(*child, f);
  }
}

}  // namespace

int64_t PromptNode::written() const { return writer ? std::clamp<int64_t>(writer->done - begin, 0, length()) : length(); }

PromptNode* PromptTree::find(const PromptFamily& family, const std::vector<int32_t>& tokens, int64_t least, int64_t most) {
  const auto root = roots_.find(family);
  if (root == roots_.end()) return nullptr;
  PromptNode* node = root->second.get();
  int64_t rest = 0;  // if the last node matches only in part: the number of tokens that match
  for (bool whole = true; whole;) {
    PromptNode* next = nullptr;
    int64_t most_common = 0;
    for (const auto& child : node->children)
      if (const int64_t same = common(*child, tokens, most); same > most_common) next = child.get(), most_common = same;
    if (!next) break;
    node = next;
    whole = most_common == node->length();
    rest = whole ? 0 : most_common;
  }
  int64_t shared = rest > 0 ? node->begin + rest : node->end();
  shared -= shared % cache_.unit();
  if (shared < std::max(LEAST, least)) return nullptr;
  while (node->begin >= shared) node = node->parent;
  return shared < node->end() ? split(node, shared - node->begin) : node;
}

void PromptTree::hold(PromptNode* node) {
  for (PromptNode* n = node; n && n->parent; n = n->parent)
    if (n->users++ == 0) retained_ -= n->length();
}
void PromptTree::drop(PromptNode* node) {
  for (PromptNode* n = node; n && n->parent; n = n->parent)
    if (--n->users == 0) retained_ += n->length();
}

// Moves the first `count` tokens of a node into a new parent, which is returned.
PromptNode* PromptTree::split(PromptNode* node, int64_t count) {
  auto& siblings = node->parent->children;
  auto& place = *std::find_if(siblings.begin(), siblings.end(), [&](auto& one) { return one.get() == node; });
  auto upper = std::make_unique<PromptNode>(PromptNode{{node->tokens.begin(), node->tokens.begin() + ptrdiff_t(count)},
                                                       node->begin,
                                                       node->slot,
                                                       node->parent,
                                                       node->writer,
                                                       node->users,
                                                       node->used});
  node->tokens.erase(node->tokens.begin(), node->tokens.begin() + ptrdiff_t(count));
  node->begin += count, node->slot += count;
  node->parent = upper.get();
  upper->children.push_back(std::move(place));
  place = std::move(upper);
  return place.get();
}

PromptNode* PromptTree::add(const PromptFamily& family, PromptNode* parent, Prompt& writer, int64_t from, int64_t slot) {
  if (!parent) {
    auto& root = roots_[family];
    if (!root) root = std::make_unique<PromptNode>();
    parent = root.get();
  }
  parent->children.push_back(std::make_unique<PromptNode>(
      PromptNode{{writer.tokens.begin() + ptrdiff_t(from), writer.tokens.end()}, from, slot, parent, &writer, 1}));
  touch(parent->children.back().get());
  return parent->children.back().get();
}

void PromptTree::touch(PromptNode* node) {
  clock_++;
  for (PromptNode* n = node; n; n = n->parent) n->used = clock_;
}

void PromptTree::leave(PromptNode* leaf) {
  touch(leaf);
  drop(leaf);
  if (settle_writer(leaf) && leaf->users == 0 && leaf->children.empty() && (leaf->end() < LEAST || superseded(leaf)))
    remove(leaf);
  while (retained_ > most_ && evict())
    ;
}

// Called when the writer of these nodes has ended: cuts off the tokens that it did not run. Returns false if nothing of the
// leaf is left.
bool PromptTree::settle_writer(PromptNode* leaf) {
  const Prompt* const writer = leaf->writer;
  const bool stays = leaf->written() > 0 || !leaf->children.empty();
  for (PromptNode* n = leaf; writer && n->writer == writer;) {
    PromptNode* const above = n->parent;
    const int64_t written = n->written(), rest = n->length() - written;
    n->writer = nullptr;
    if (written == 0 && n->children.empty()) {
      remove(n);
    } else if (rest > 0) {
      cache_.release(n->slot + written, rest);
      n->tokens.resize(size_t(written));
      if (n->users == 0) retained_ -= rest;
    }
    n = above;
  }
  return stays;
}

// Whether a sibling makes an unused leaf redundant, because it starts with the same token and is used or longer. A shorter
// unused sibling is removed instead.
bool PromptTree::superseded(PromptNode* leaf) {
  const auto& siblings = leaf->parent->children;
  for (size_t i = 0; i < siblings.size(); i++) {
    PromptNode* const other = siblings[i].get();
    if (other == leaf || other->tokens.front() != leaf->tokens.front()) continue;
    if (other->users > 0 || !other->children.empty() || other->length() >= leaf->length()) return true;
    remove(other);
    i--;
  }
  return false;
}

// Removes a leaf that no prompt holds.
void PromptTree::remove(PromptNode* leaf) {
  cache_.release(leaf->slot, leaf->length());
  retained_ -= leaf->length();
  std::erase_if(leaf->parent->children, [&](auto& one) { return one.get() == leaf; });
}

bool PromptTree::evict() {
  PromptNode* oldest = nullptr;
  for (const auto& [family, root] : roots_)
    visit(*root, [&](PromptNode& node) {
      if (node.users == 0 && node.children.empty() && (!oldest || node.used < oldest->used)) oldest = &node;
    });
  if (!oldest) return false;
  remove(oldest);
  std::erase_if(roots_, [](auto& root) { return root.second->children.empty(); });
  return true;
}

void PromptTree::clear() noexcept {
  roots_.clear();
  retained_ = 0;
}

Cache::Runs PromptTree::written() const {
  Cache::Runs out;
  for (const auto& [family, root] : roots_)
    visit(*root, [&](const PromptNode& node) {
      if (node.written() > 0) out.emplace_back(node.slot, node.written());
    });
  return out;
}

std::vector<LoopCacheRun> PromptTree::runs(const PromptNode* node, int64_t from) {
  std::vector<LoopCacheRun> out;  // from the last run to the first
  for (; node && node->parent && node->begin >= from; node = node->parent) {
    if (!out.empty() && node->slot + node->length() == out.back().begin) {
      out.back().begin = int32_t(node->slot);
      out.back().length += int32_t(node->length());
    } else {
      out.push_back({int32_t(node->slot), int32_t(node->length())});
    }
  }
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace looplm
