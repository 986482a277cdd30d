// For any bytes, the parser either refuses them with INVALID_FILE, or returns tensors that lie within them, one after the
// other.
#include <cstdlib>

#include "../../engine/error.h"
#include "../../engine/safetensors.h"
#include "fuzz.h"

namespace looplm::fuzz {

void safetensors(const uint8_t* data, size_t size) {
  try {
    size_t covered = 0;
    for (const auto& [name, entry] : parse_safetensors("fuzz", data, size).tensors) {
      const auto* begin = static_cast<const uint8_t*>(entry.data);
      if (begin < data || entry.bytes > size || size_t(begin - data) > size - entry.bytes) std::abort();
      covered += entry.bytes;
    }
    if (covered > size) std::abort();
  } catch (const Error& error) {
    if (error.code != "INVALID_FILE") std::abort();
  }
}

}  // namespace looplm::fuzz
