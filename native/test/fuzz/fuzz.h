// What is fuzzed: each target takes any bytes and aborts when a promise is broken. `npm run fuzz` runs them under libFuzzer with
// ASan and UBSan; `looplm_fuzz_replay` runs the corpus in the ordinary tests.
#pragma once
#include <cstddef>
#include <cstdint>

namespace looplm::fuzz {

void safetensors(const uint8_t* data, size_t size);  // a header's checks
void json(const uint8_t* data, size_t size);         // the JSON reader, asked questions that the input chooses
void checkpoint(const uint8_t* data, size_t size);   // parameters, optimizer and moving average from a file that the input edits

}  // namespace looplm::fuzz
