// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011). A number depends only on its key and counter. So a draw never depends on the rest of the batch or on the number of
// threads.
//
// The four counter words of each use:
//   {position, sequence, stream, 0}              uniform
//   {index / 2, b, a, 1}                         normal
//   {k / 4, position, stream, 2 + 4·loop}        latent noise
//   {index, b, a, 3 + 4·draw}                    truncated normal
//   {token, key, key >> 32, 1} with seed 0       the hash of a sequence (StateKey in initial_state.h)
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace looplm {

using PhiloxBlock = std::array<uint32_t, 4>;

inline PhiloxBlock philox4x32(PhiloxBlock counter, uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * counter[0], p1 = uint64_t(0xCD9E8D57u) * counter[2];
    counter = {uint32_t(p1 >> 32) ^ counter[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter[3] ^ k1, uint32_t(p0)};
    k0 += 0x9E3779B9u;  // the golden ratio
    k1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

// A number in (0, 1) from 53 random bits. The one pattern that would give 0 becomes half of the smallest step.
inline double unit_interval(uint32_t high, uint32_t low) {
  const uint64_t bits = (uint64_t(high) << 32 | low) >> 11;
  return std::max(double(bits) * 0x1p-53, 0x1p-54);
}

// Values for `stream` of uniform(): one for each use, so that no two uses draw the same numbers. 2 is free.
constexpr uint32_t SAMPLING_STREAM = 0;
constexpr uint32_t EXIT_SAMPLING_STREAM = 1;   // exits of generated tokens
constexpr uint32_t REPLAY_EXIT_STREAM = 3;     // exits of LoopRPT's rollouts
constexpr uint32_t OBJECTIVE_EXIT_STREAM = 4;  // exits of an objective's terms; plus the number of the draw
constexpr uint32_t ADAPTER_STREAM = 1u << 30;  // initial values of LoRA; far above the streams of draws

inline double uniform(uint64_t seed, uint32_t sequence, uint32_t position, uint32_t stream = SAMPLING_STREAM) {
  const PhiloxBlock block = philox4x32({position, sequence, stream, 0}, seed);
  return unit_interval(block[0], block[1]);
}

// Two independent standard normal values by Box-Muller: elements 2·pair and 2·pair + 1 of the sequence (seed, a, b).
inline std::array<double, 2> normal_pair(uint64_t seed, uint32_t a, uint32_t b, uint32_t pair) {
  const PhiloxBlock block = philox4x32({pair, b, a, 1}, seed);
  const double radius = std::sqrt(-2 * std::log(unit_interval(block[0], block[1])));
  const double angle = 2 * 3.14159265358979323846 * unit_interval(block[2], block[3]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

inline double normal(uint64_t seed, uint32_t a, uint32_t b, uint32_t index) {
  return normal_pair(seed, a, b, index / 2)[index % 2];
}

// Redrawn until it is within 3 standard deviations.
inline double truncated_normal(uint64_t seed, uint32_t a, uint32_t b, uint32_t index) {
  for (uint32_t draw = 0;; draw++) {
    const PhiloxBlock block = philox4x32({index, b, a, 3 + 4 * draw}, seed);
    const double radius = std::sqrt(-2 * std::log(unit_interval(block[0], block[1])));
    const double x = radius * std::cos(2 * 3.14159265358979323846 * unit_interval(block[2], block[3]));
    if (std::abs(x) <= 3) return x;
  }
}

// Elements 4·block to 4·block + 3 of the noise at one position. Box-Muller on 32-bit uniform numbers, which float32 kernels
// can follow closely.
inline std::array<double, 4> latent_noise(uint64_t seed, uint32_t stream, uint32_t position, uint32_t loop, uint32_t block) {
  const PhiloxBlock bits = philox4x32({block, position, stream, 2 + 4 * loop}, seed);
  std::array<double, 4> out;
  for (int pair = 0; pair < 2; ++pair) {
    const double radius = std::sqrt(-2 * std::log((double(bits[2 * pair]) + 0.5) * 0x1p-32));
    const double angle = 2 * 3.14159265358979323846 * double(bits[2 * pair + 1]) * 0x1p-32;
    out[2 * pair] = radius * std::cos(angle);
    out[2 * pair + 1] = radius * std::sin(angle);
  }
  return out;
}

}  // namespace looplm
