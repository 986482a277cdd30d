#include "block_formats.h"

#include <cstring>

#include "../numeric/half.h"

namespace looplm {

namespace {

float half_at(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return f16_to_float(bits);
}

// a · b rounded to float32. Computed in float64, so that no compiler fuses it with a following addition (FMA).
float product(float a, float b) { return float(double(a) * double(b)); }

int low(uint8_t byte) { return byte & 15; }
int high(uint8_t byte) { return byte >> 4; }
int bit(uint32_t bits, int i) { return int(bits >> i & 1); }

// Blocks of 32 elements. Of 4-bit codes, the low nibbles of the 16 bytes hold the first 16 elements and the high nibbles the
// others. A fifth bit is in a separate 32-bit word.
void expand_q8_0(const uint8_t* block, float* out) {
  const float scale = half_at(block);
  for (int i = 0; i < 32; i++) out[i] = product(scale, float(int8_t(block[2 + i])));
}
void expand_q4_0(const uint8_t* block, float* out) {
  const float scale = half_at(block);
  for (int i = 0; i < 16; i++) {
    out[i] = product(scale, float(low(block[2 + i]) - 8));
    out[i + 16] = product(scale, float(high(block[2 + i]) - 8));
  }
}
void expand_q4_1(const uint8_t* block, float* out) {
  const float scale = half_at(block), least = half_at(block + 2);
  for (int i = 0; i < 16; i++) {
    out[i] = product(scale, float(low(block[4 + i]))) + least;
    out[i + 16] = product(scale, float(high(block[4 + i]))) + least;
  }
}
void expand_q5_0(const uint8_t* block, float* out) {
  const float scale = half_at(block);
  uint32_t fifth;
  std::memcpy(&fifth, block + 2, sizeof fifth);
  for (int i = 0; i < 16; i++) {
    out[i] = product(scale, float((low(block[6 + i]) | bit(fifth, i) << 4) - 16));
    out[i + 16] = product(scale, float((high(block[6 + i]) | bit(fifth, i + 16) << 4) - 16));
  }
}
void expand_q5_1(const uint8_t* block, float* out) {
  const float scale = half_at(block), least = half_at(block + 2);
  uint32_t fifth;
  std::memcpy(&fifth, block + 4, sizeof fifth);
  for (int i = 0; i < 16; i++) {
    out[i] = product(scale, float(low(block[8 + i]) | bit(fifth, i) << 4)) + least;
    out[i + 16] = product(scale, float(high(block[8 + i]) | bit(fifth, i + 16) << 4)) + least;
  }
}

// Blocks of 256 elements in 8 groups of 32. Each group has a 6-bit scale and a 6-bit minimum, all packed into 12 bytes.
// Groups 0-3: the low 6 bits of bytes 0-3 (scales) and 4-7 (minimums). Groups 4-7: low 4 bits in bytes 8-11, high 2 bits in
// the top bits of bytes 0-7.
struct GroupScale {
  int scale, least;
};
GroupScale group_scale(const uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
  const uint8_t both = packed[group + 4];
  return {low(both) | (packed[group - 4] >> 6) << 4, high(both) | (packed[group] >> 6) << 4};
}
// fifths: bit `group` of byte i is the fifth bit of element i of that group; NULL: codes have 4 bits.
void expand_groups(const uint8_t* block, const uint8_t* fifths, const uint8_t* codes, float* out) {
  const float scale = half_at(block), least = half_at(block + 2);
  for (int group = 0; group < 8; group++) {
    const GroupScale own = group_scale(block + 4, group);
    const float step = product(scale, float(own.scale)), from = product(least, float(own.least));
    const uint8_t* pair = codes + group / 2 * 32;
    for (int i = 0; i < 32; i++) {
      const int code = (group % 2 ? high(pair[i]) : low(pair[i])) | (fifths ? bit(fifths[i], group) << 4 : 0);
      out[group * 32 + i] = product(step, float(code)) - from;
    }
  }
}
void expand_q4_k(const uint8_t* block, float* out) { expand_groups(block, nullptr, block + 16, out); }
void expand_q5_k(const uint8_t* block, float* out) { expand_groups(block, block + 16, block + 48, out); }

// 256 codes of 6 bits: two halves of 128, each with four quarters of 32. An 8-bit scale for every 16 elements.
void expand_q6_k(const uint8_t* block, float* out) {
  const uint8_t *fours = block, *twos = block + 128, *scales = block + 192;
  const float scale = half_at(block + 208);
  for (int i = 0; i < 256; i++) {
    const int half = i / 128, quarter = i % 128 / 32, at = i % 32;
    const uint8_t four = fours[half * 64 + quarter % 2 * 32 + at];
    const int two = twos[half * 32 + at] >> 2 * quarter & 3;
    const int code = (quarter < 2 ? low(four) : high(four)) | two << 4;
    out[i] = product(product(scale, float(int8_t(scales[i / 16]))), float(code - 32));
  }
}

constexpr BlockFormat formats[] = {
    {"Q4_0", 32, 18, expand_q4_0},   {"Q4_1", 32, 20, expand_q4_1},   {"Q5_0", 32, 22, expand_q5_0},
    {"Q5_1", 32, 24, expand_q5_1},   {"Q8_0", 32, 34, expand_q8_0},   {"Q4_K", 256, 144, expand_q4_k},
    {"Q5_K", 256, 176, expand_q5_k}, {"Q6_K", 256, 210, expand_q6_k},
};

}  // namespace

const BlockFormat* block_format(std::string_view name) {
  for (const BlockFormat& format : formats)
    if (format.name == name) return &format;
  return nullptr;
}

float split_q8_0(const uint8_t* block, uint8_t* codes) {
  std::memcpy(codes, block + 2, 32);
  return half_at(block);
}
float split_q4_0(const uint8_t* block, uint8_t* codes) {
  const auto code = [&](int i) { return i < 16 ? low(block[2 + i]) : high(block[2 + i - 16]); };
  for (int i = 0; i < 32; i += 2) codes[i / 2] = uint8_t(code(i) | code(i + 1) << 4);
  return half_at(block);
}

}  // namespace looplm
