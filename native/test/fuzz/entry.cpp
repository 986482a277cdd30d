// libFuzzer's entry point; compiled once per target with LOOPLM_FUZZ_TARGET.
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  looplm::fuzz::LOOPLM_FUZZ_TARGET(data, size);
  return 0;
}
