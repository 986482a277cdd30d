#include "xxh64.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace looplm {

namespace {

constexpr size_t stripe_bytes = 32;

template <class Word>
uint64_t read_word(const uint8_t* bytes) {  // little-endian, like every processor that looplm supports
  Word word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

uint64_t mix(uint64_t lane, uint64_t word) { return std::rotl(lane + word * Xxh64::prime2, 31) * Xxh64::prime1; }

}  // namespace

void Xxh64::stripes(const uint8_t* bytes, size_t count) {
  uint64_t a = lanes_[0], b = lanes_[1], c = lanes_[2], d = lanes_[3];
  for (const uint8_t* end = bytes + count; bytes < end; bytes += stripe_bytes) {
    a = mix(a, read_word<uint64_t>(bytes));
    b = mix(b, read_word<uint64_t>(bytes + 8));
    c = mix(c, read_word<uint64_t>(bytes + 16));
    d = mix(d, read_word<uint64_t>(bytes + 24));
  }
  lanes_[0] = a, lanes_[1] = b, lanes_[2] = c, lanes_[3] = d;
}

void Xxh64::update(const void* data, size_t count) {
  if (count == 0) return;
  const auto* bytes = static_cast<const uint8_t*>(data);
  const size_t held = total_ % stripe_bytes;
  total_ += count;
  if (held > 0) {
    const size_t taken = std::min(count, stripe_bytes - held);
    std::memcpy(rest_ + held, bytes, taken);
    if (held + taken < stripe_bytes) return;
    stripes(rest_, stripe_bytes);
    bytes += taken;
    count -= taken;
  }
  const size_t whole = count / stripe_bytes * stripe_bytes;
  stripes(bytes, whole);
  std::memcpy(rest_, bytes + whole, count - whole);
}

uint64_t Xxh64::digest() const {
  uint64_t hash = prime5;
  if (total_ >= stripe_bytes) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) + std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) hash = (hash ^ mix(0, lane)) * prime1 + prime4;
  }
  hash += total_;
  const uint8_t* next = rest_;
  size_t left = total_ % stripe_bytes;
  for (; left >= 8; left -= 8, next += 8) hash = std::rotl(hash ^ mix(0, read_word<uint64_t>(next)), 27) * prime1 + prime4;
  if (left >= 4) {
    hash = std::rotl(hash ^ read_word<uint32_t>(next) * prime1, 23) * prime2 + prime3;
    left -= 4, next += 4;
  }
  for (; left > 0; left--) hash = std::rotl(hash ^ *next++ * prime5, 11) * prime1;
  hash = (hash ^ hash >> 33) * prime2;
  hash = (hash ^ hash >> 29) * prime3;
  return hash ^ hash >> 32;
}

uint64_t xxh64(const void* bytes, size_t count) {
  Xxh64 hash;
  hash.update(bytes, count);
  return hash.digest();
}

std::string checksum_text(uint64_t checksum) {
  std::string text(16, '0');
  for (size_t i = 16; i-- > 0; checksum >>= 4) text[i] = "0123456789abcdef"[checksum & 15];
  return text;
}

}  // namespace looplm
