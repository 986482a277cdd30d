#include "cache.h"

#include <algorithm>

namespace looplm {

// Number of neighbours that share a scale: 64 or 32 if it divides head_dim, otherwise the largest divisor from 16 to 63,
// otherwise the whole head.
int32_t Cache::group_of(int32_t head_dim) {
  for (int32_t group : {64, 32})
    if (head_dim % group == 0) return group;
  for (int32_t group = 63; group >= 16; group--)
    if (head_dim % group == 0) return group;
  return head_dim;
}

int64_t Cache::allocate(int64_t slots) {
  const auto same = [](const Part& a, const Part& b) {
    return a.type == b.type && a.row == b.row && a.of_block == b.of_block && a.of_others == b.of_others;
  };
  const std::vector<Part> now = parts();
  if (used() == 0 && !std::equal(parts_.begin(), parts_.end(), now.begin(), now.end(), same)) clear();  // the adapter changed
  return slots_.allocate(slots);
}

int64_t Cache::allocate_recent(int64_t slots) {
  if (!coded()) return 0;
  const int64_t first = recent_slots_.allocate(slots);
  if (first >= 0) return first;
  const int64_t before = recent_slots_.count(), missing = slots - recent_slots_.free_at_end();
  for (int64_t count : {std::max(before + missing, 2 * before), before + missing}) {
    if (count > INT32_MAX / planes_ || !replace(recent_, recent_parts(), before, count, {{0, before}})) continue;
    recent_slots_.add(count - before);
    return recent_slots_.allocate(slots);
  }
  return -1;
}

void Cache::clear() noexcept {
  parts_.clear();
  recent_.clear();
  slots_.clear();
  recent_slots_.clear();
  generation_++;
}

int64_t Cache::room() const {
  const size_t free = model_.device->memory().free, usable = free - free / 10;  // a tenth is left for activations
  int64_t held = 0;  // slots that occupy memory: in host memory the written ones, on a device all of them
  if (!model_.device->host_visible()) held = slots();
  else
    for (const auto& run : written_()) held += run.second;
  const int64_t more = int64_t(usable / slot_bytes()), addressed = INT32_MAX / planes_;
  const int64_t fitting = held <= more ? held + more : slots();  // growing copies this cache, so both need memory at once
  return std::min({fitting, addressed, limit_ > 0 ? limit_ : addressed});
}

bool Cache::grow_for(int64_t slots, int64_t preferred) {
  if (used() == 0) clear();  // nothing to copy, so the old and the new cache need not exist at once
  // Slots that are free at the end count as part of the new room.
  const int64_t before = this->slots(), tail = slots_.free_at_end(), least = before - tail + slots, most = room();
  if (least > most) return false;
  const int64_t roomy = exact_growth ? least : std::min(most, std::max({least, before - tail + preferred, before + before / 2}));
  return replace(roomy) || (least < roomy && replace(least));
}

std::vector<Cache::Part> Cache::parts() const {
  std::vector<Part> out;
  const auto halves = [&](LoopDType type, int64_t row, int64_t of_block, int64_t of_others) {
    for (int half = 0; half < 2; half++) out.push_back({type, row, of_block, of_others});
  };
  if (!coded()) halves(model_.dt, int64_t(width()), planes_, others());
  else
    for (const LoopCacheCodes& codes : {codes_, loop_whole_codes(codes_)})
      out.push_back({LOOP_I32, words(codes), with_residuals() ? 1 : planes_, others()});
  if (with_residuals()) halves(LOOP_I32, words(residual_codes_), planes_ - 1, 0);
  if (shift_width() > 0) halves(model_.dt, int64_t(shift_width()), planes_, others());
  return out;
}

std::vector<Cache::Part> Cache::recent_parts() const {
  std::vector<Part> out;
  for (int half = 0; half < 2; half++) out.push_back({model_.dt, int64_t(width()), planes_, others()});
  return out;
}

size_t Cache::slot_bytes() const {
  size_t bytes = 0;
  for (const Part& part : parts()) bytes += part.bytes(planes(part));
  return bytes;
}

// Replaces the cache by one of another size with the same contents. Returns false if there is no memory for it.
bool Cache::replace(int64_t slots) {
  const int64_t before = this->slots();
  if (!replace(parts_, parts(), before, slots, written_())) return false;
  slots_.add(slots - before);
  return true;
}

bool Cache::replace(std::vector<Part>& parts, std::vector<Part> larger, int64_t from, int64_t to, const Runs& runs) {
  try {
    for (Part& part : larger) part.buffer = Buffer(model_.device, part.bytes(planes(part) * to) + 64);
  } catch (const Error& error) {
    if (error.code != "OUT_OF_MEMORY") throw;
    return false;
  }
  for (size_t i = 0; i < parts.size(); i++)
    for (const auto& [first, count] : runs) {
      if (count == 0) continue;
      const int64_t row = larger[i].row, shape[] = {planes(larger[i]), count * row}, was[] = {from * row, 1},
                    is[] = {to * row, 1};
      const size_t at = larger[i].bytes(first);
      model_.device->run(&LoopBackend::copy_strided, "grow the cache", larger[i].type, larger[i].type, 2, shape,
                         parts[i].buffer.at(at), was, larger[i].buffer.at(at), is);
    }
  parts = std::move(larger);
  generation_++;
  return true;
}

CacheUse Cache::use(const int32_t* rows) {
  CacheUse out{at(0), at(1), slots(), planes_, rows, nullptr, nullptr, 0, 0, at(shift_at()), at(shift_at() + 1), nullptr};
  if (!coded()) return out;
  out.coded.codes = codes_;
  out.coded.slots = recent_slots_.count();
  if (!recent_.empty()) out.coded.keys = recent_[0].buffer.as<>(), out.coded.values = recent_[1].buffer.as<>();
  if (with_residuals()) {
    out.coded.residual = residual_codes_;
    out.coded.residual_keys = at(2), out.coded.residual_values = at(3);
    out.coded.loop_blocks = loop_blocks_;
  }
  return out;
}
CacheUse Cache::decoding(const int32_t* rows, const LoopCacheContext* contexts, const int32_t* before) {
  CacheUse out = use(rows);
  out.contexts = contexts;
  out.before = before;
  return out;
}
CacheUse Cache::prompts(const int32_t* rows, const CachedPrefix* prefixes, int32_t prefix_count, int64_t prefix_rows) {
  CacheUse out = use(rows);
  out.prefixes = prefixes;
  out.prefix_count = prefix_count;
  out.prefix_rows = prefix_rows;
  return out;
}

void Cache::copy_slots(Planes which, int64_t from, int64_t to, int64_t count) {
  const int64_t readout = model_.config.blocks(model_.config.read);
  for (Part& part : parts_) {
    const int64_t of_readout = part.of_others > 0 ? readout : 0, states = planes(part) - of_readout;
    const int64_t first = which == Planes::states ? 0 : states, some = which == Planes::states ? states : of_readout;
    if (count == 0 || some == 0) continue;
    const int64_t shape[] = {some, count * part.row}, strides[] = {slots() * part.row, 1};
    model_.device->run(&LoopBackend::copy_strided, "copy slots", part.type, part.type, 2, shape,
                       part.buffer.at(part.bytes(first * slots() + from)), strides,
                       part.buffer.at(part.bytes(first * slots() + to)), strides);
  }
}

void Cache::copy_up(Part& part, int64_t slots, int64_t slot, int t, int loops) {
  const int64_t plane = slots * part.row, block = planes_ * plane;
  const int64_t shape[] = {loop_blocks_, loops - t - 1, part.row}, from[] = {block, 0, 1}, to[] = {block, plane, 1};
  model_.device->run(&LoopBackend::copy_strided, "copy up", part.type, part.type, 3, shape,
                     part.buffer.at(part.bytes(t * slots + slot)), from, part.buffer.at(part.bytes((t + 1) * slots + slot)), to);
}

// With residuals, no records are copied here: they are made from the recent slot when the token has left the loops.
void Cache::copy_up(int64_t slot, int64_t recent, int t, int loops) {
  if (shared() || t + 1 >= loops) return;
  for (Part& part : parts_)
    if (part.of_block == planes_) copy_up(part, slots(), slot, t, loops);
  for (Part& part : recent_) copy_up(part, recent_slots_.count(), recent, t, loops);
}

void Cache::reserve_tokens(size_t count) {
  if (with_residuals()) tokens_.reserve(model_.device, count * sizeof(LoopResidualToken));
}

void Cache::encode(const std::vector<LoopResidualToken>& tokens) {
  if (tokens.empty()) return;
  tokens_.upload(tokens.data(), tokens.size() * sizeof(LoopResidualToken));
  LoopResidualEncode e{};
  e.count = int64_t(tokens.size()), e.width = int64_t(width());
  e.anchor = codes_, e.residual = residual_codes_;
  e.tokens = tokens_.as<LoopResidualToken>();
  e.exact_slots = recent_slots_.count(), e.slots = slots();
  for (int64_t block = 0; block < loop_blocks_; block++) {
    const auto at = [&](Part& part, int64_t slots) -> void* { return part.buffer.at(part.bytes(block * part.of_block * slots)); };
    e.keys = at(recent_[0], e.exact_slots), e.values = at(recent_[1], e.exact_slots);
    e.anchor_keys = at(parts_[0], e.slots), e.anchor_values = at(parts_[1], e.slots);
    e.residual_keys = at(parts_[2], e.slots), e.residual_values = at(parts_[3], e.slots);
    model_.device->run(&LoopBackend::cache_encode_residuals, "cache encode", model_.dt,
                       static_cast<const LoopResidualEncode*>(&e));
  }
}

}  // namespace looplm
