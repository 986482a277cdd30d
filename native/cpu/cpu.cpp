#include "cpu.h"

#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace looplm::cpu {

// Weak: a developer's build leaves out what this machine does not use (CMakeLists.txt), and the address is then null.
#if defined(__x86_64__)
namespace avx512_bf16 {
extern const LoopBackend table [[gnu::weak]];
}
namespace avx512 {
extern const LoopBackend table [[gnu::weak]];
}
namespace avx2 {
extern const LoopBackend table [[gnu::weak]];
}
#endif
namespace baseline {
extern const LoopBackend table [[gnu::weak]];
}

namespace {
struct Isa {
  const char* name;
  const LoopBackend* table;
  bool runs;
};
#if defined(__x86_64__)
// g++ before 11 and clang before 19 do not know the name "f16c". The check of avx2 includes that the system keeps the registers.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif
}  // namespace

}  // namespace looplm::cpu

extern "C" const LoopBackend* looplm_cpu_backend(void) {
  using namespace looplm::cpu;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every feature that the flags in CMakeLists.txt let the compiler use; test/native/native.test.ts compares the two.
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx") && __builtin_cpu_supports("fma") &&
                        has_f16c() && __builtin_cpu_supports("sse3") && __builtin_cpu_supports("ssse3") &&
                        __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const Isa best_first[] = {{"avx512_bf16", &avx512_bf16::table, has_avx512 && __builtin_cpu_supports("avx512bf16")},
                            {"avx512", &avx512::table, has_avx512},
                            {"avx2", &avx2::table, has_avx2},
                            {"baseline", &baseline::table, true}};
#else
  const Isa best_first[] = {{"avx512_bf16", nullptr, false},
                            {"avx512", nullptr, false},
                            {"avx2", nullptr, false},
                            {"baseline", &baseline::table, true}};
#endif
  const char* limit = std::getenv("LOOPLM_CPU_ISA");
  bool below = !limit;  // false until the limit's row is reached
  for (auto& isa : best_first) {
    if (limit && std::strcmp(isa.name, limit) == 0) below = true;
    if (below && isa.runs && isa.table) return isa.table;
  }
  return nullptr;
}
