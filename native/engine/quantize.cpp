#include "quantize.h"

#include <algorithm>
#include <bit>
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

namespace {

constexpr int LOWEST = -8, HIGHEST = 7;  // range of 4-bit codes

void put_code(int bits, uint8_t* codes, int64_t l, int code) {
  if (bits == 8) codes[l] = uint8_t(int8_t(code));
  else if (l % 2 == 0) codes[l / 2] = uint8_t(code + 8);
  else codes[l / 2] = uint8_t(codes[l / 2] | (code + 8) << 4);
}

// An asymmetric grid: value = scale · code + middle.
struct Grid {
  float scale, middle;
  int code(float w) const {
    const float place = scale == 0 ? 0 : (w - middle) / scale;
    return int(std::lrint(std::clamp(place, float(LOWEST), float(HIGHEST))));
  }
  Grid rounded() const { return {bf16_to_float(float_to_bf16(scale)), bf16_to_float(float_to_bf16(middle))}; }
};

double square_error(const Grid& grid, const float* w, int group) {
  double sum = 0;
  for (int l = 0; l < group; l++) {
    const double off = double(grid.scale) * grid.code(w[l]) + grid.middle - w[l];
    sum += off * off;
  }
  return sum;
}

// The least-squares grid for the codes that w has on `grid`: a line fitted through the points (code, w).
Grid fitted(const Grid& grid, const float* w, int group) {
  double codes = 0, squares = 0, sum = 0, products = 0;
  for (int l = 0; l < group; l++) {
    const double code = grid.code(w[l]);
    codes += code, squares += code * code, sum += w[l], products += code * w[l];
  }
  const double spread = group * squares - codes * codes;
  if (spread <= 0) return grid;
  const double scale = (group * products - codes * sum) / spread;
  return {float(scale), float((sum - scale * codes) / group)};
}

// Tries several starting widths around the range of the values, and refits each while the error decreases.
Grid best_grid(const float* w, int group) {
  const auto [low, high] = std::minmax_element(w, w + group);
  const float width = *high - *low, centre = *low + width / 2;
  Grid best = Grid{0, centre}.rounded();
  double least = square_error(best, w, group);
  for (const float share : {1.0f, 0.9f, 0.8f}) {
    const float scale = width * share / (HIGHEST - LOWEST);
    Grid grid{scale, centre - scale * (LOWEST + HIGHEST) / 2};
    for (int fit = 0; fit < 4; fit++, grid = fitted(grid, w, group)) {
      const Grid kept = grid.rounded();
      const double error = square_error(kept, w, group);
      if (error < least) best = kept, least = error;
    }
  }
  return best;
}

float packed(const Grid& grid) {
  return std::bit_cast<float>(uint32_t(float_to_bf16(grid.scale)) << 16 | float_to_bf16(grid.middle));
}
Grid unpacked(float pair) {
  const auto bits = std::bit_cast<uint32_t>(pair);
  return {bf16_to_float(uint16_t(bits >> 16)), bf16_to_float(uint16_t(bits))};
}

}  // namespace

void quantize_row(const CodeFormat& format, const float* row, int64_t in, uint8_t* codes, float* scales) {
  const int bits = format.bits, group = format.group;
  const int low = bits == 8 ? -127 : LOWEST, high = bits == 8 ? 127 : HIGHEST;
  for (int64_t first = 0; first < in; first += group) {
    if (format.asymmetric) {
      const Grid grid = best_grid(row + first, group);
      scales[first / group] = packed(grid);
      for (int64_t l = first; l < first + group; l++) put_code(bits, codes, l, grid.code(row[l]));
      continue;
    }
    float largest = 0;
    for (int64_t l = first; l < first + group; l++)
      if (std::fabs(row[l]) > std::fabs(largest)) largest = row[l];
    const float scale = bits == 8 ? std::fabs(largest) / 127 : largest / -8, inverse = scale == 0 ? 0 : 1 / scale;
    scales[first / group] = scale;
    for (int64_t l = first; l < first + group; l++)
      put_code(bits, codes, l, std::clamp(int(std::lrint(row[l] * inverse)), low, high));
  }
}

std::vector<double> dequantize_rows(const CodeFormat& format, int64_t rows, int64_t in, const uint8_t* codes,
                                    const float* scales) {
  std::vector<double> out;
  out.reserve(size_t(rows * in));
  for (int64_t i = 0; i < rows; i++)
    for (int64_t l = 0; l < in; l++) {
      const int pair = codes[(i * in + l) * format.bits / 8];
      const int code = format.bits == 8 ? int8_t(pair) : (l % 2 ? pair >> 4 : pair & 15) - 8;
      const float scale = scales[i * (in / format.group) + l / format.group];
      const Grid grid = format.asymmetric ? unpacked(scale) : Grid{scale, 0};
      out.push_back(code * double(grid.scale) + grid.middle);
    }
  return out;
}

}  // namespace looplm
