// The element types of GGUF files (ggml): values one by one, or in blocks of neighbours of a row that share their scales.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace looplm {

struct BlockFormat {
  std::string_view name;   // "Q8_0"
  size_t elements, bytes;  // of a block
  // The float32 values that a block stands for, rounded where ggml's definition rounds.
  void (*expand)(const uint8_t* block, float* out);
};

// NULL: not a type that is read in blocks.
const BlockFormat* block_format(std::string_view name);

// One block of Q8_0 or Q4_0 as LoopQuantized has it: its scale, and codes of 8 bits [32] or two to a byte [16].
float split_q8_0(const uint8_t* block, uint8_t* codes);
float split_q4_0(const uint8_t* block, uint8_t* codes);

}  // namespace looplm
