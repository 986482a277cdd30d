// A libFuzzer entry: whatever the bytes are, the parser either refuses them with INVALID_FILE or returns tensors that lie within
// them.
//   clang++ -std=c++20 -g -fsanitize=fuzzer,address,undefined native/test/fuzz_safetensors.cpp
//   native/engine/{safetensors,json}.cpp
#include <cstdint>
#include <cstdlib>

#include "../engine/error.h"
#include "../engine/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    size_t covered = 0;
    for (const auto& [name, entry] : looplm::parse_safetensors("fuzz", data, size).tensors) {
      const auto* begin = static_cast<const uint8_t*>(entry.data);
      if (begin < data || entry.bytes > size || size_t(begin - data) > size - entry.bytes) std::abort();
      covered += entry.bytes;
    }
    if (covered > size) std::abort();
  } catch (const looplm::Error& error) {
    if (error.code != "INVALID_FILE") std::abort();
  }
  return 0;
}
