// The element types of GGUF files (ggml): single values, or blocks of consecutive elements of a row that share scales.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace looplm {

struct BlockFormat {
  std::string_view name;   // "Q8_0"
  size_t elements, bytes;  // per block
  // Expands a block to float32 values, rounded where ggml's definition rounds.
  void (*expand)(const uint8_t* block, float* out);
};

// NULL: `name` is not a block format that looplm reads.
const BlockFormat* block_format(std::string_view name);

// Splits one Q8_0 or Q4_0 block into the layout of LoopQuantized: returns the scale and writes 8-bit codes [32], or 4-bit
// codes two per byte [16].
float split_q8_0(const uint8_t* block, uint8_t* codes);
float split_q4_0(const uint8_t* block, uint8_t* codes);

}  // namespace looplm
