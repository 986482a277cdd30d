// The fuzz targets. Each accepts any bytes and aborts if a promise is broken. `npm run fuzz` runs them under libFuzzer with
// ASan and UBSan. `looplm_fuzz_replay` runs the corpus in the ordinary tests.
#pragma once
#include <cstddef>
#include <cstdint>

namespace looplm::fuzz {

void safetensors(const uint8_t* data, size_t size);  // the checks of a header
void json(const uint8_t* data, size_t size);         // the JSON reader; the input also chooses the questions
void checkpoint(const uint8_t* data, size_t size);   // parameters, optimizer and moving average, from a file that the input
                                                     // modifies

}  // namespace looplm::fuzz
