#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../numeric/half.h"

namespace looplm {

void to_floats(LoopDType dt, const void* values, size_t count, float* out) {
  const auto* bytes = static_cast<const char*>(values);
  if (dt == LOOP_F32) {
    std::memcpy(out, values, count * 4);
  } else if (dt == LOOP_F64) {
    for (size_t i = 0; i < count; i++) {
      double value;
      std::memcpy(&value, bytes + 8 * i, 8);
      out[i] = float(value);
    }
  } else {
    for (size_t i = 0; i < count; i++) {
      uint16_t bits;
      std::memcpy(&bits, bytes + 2 * i, 2);
      out[i] = bf16_to_float(bits);
    }
  }
}

void quantize_row(int bits, int group, const float* row, int64_t in, uint8_t* codes, float* scales) {
  const int low = bits == 8 ? -127 : -8, high = bits == 8 ? 127 : 7;
  for (int64_t first = 0; first < in; first += group) {
    float largest = 0;
    for (int64_t l = first; l < first + group; l++)
      if (std::fabs(row[l]) > std::fabs(largest)) largest = row[l];
    const float scale = bits == 8 ? std::fabs(largest) / 127 : largest / -8, inverse = scale == 0 ? 0 : 1 / scale;
    scales[first / group] = scale;
    for (int64_t l = first; l < first + group; l++) {
      const int code = std::clamp(int(std::lrint(row[l] * inverse)), low, high);
      if (bits == 8) codes[l] = uint8_t(int8_t(code));
      else if (l % 2 == 0) codes[l / 2] = uint8_t(code + 8);
      else codes[l / 2] = uint8_t(codes[l / 2] | (code + 8) << 4);
    }
  }
}

std::vector<double> dequantize_rows(int bits, int group, int64_t rows, int64_t in, const uint8_t* codes, const float* scales) {
  std::vector<double> out;
  out.reserve(size_t(rows * in));
  for (int64_t i = 0; i < rows; i++)
    for (int64_t l = 0; l < in; l++) {
      const int pair = codes[(i * in + l) * bits / 8];
      const int code = bits == 8 ? int8_t(pair) : (l % 2 ? pair >> 4 : pair & 15) - 8;
      out.push_back(code * double(scales[i * (in / group) + l / group]));
    }
  return out;
}

}  // namespace looplm
