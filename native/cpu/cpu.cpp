#include "cpu.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>  // defines: getauxval
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>  // defines: sysctlbyname
#endif

#include "context.h"

namespace looplm::cpu {

// Weak symbols: a developer's build contains only the instruction sets of its machine (CMakeLists.txt); the others are null.
#if defined(__x86_64__)
namespace avx512_bf16 {
extern const LoopBackend table [[gnu::weak]];
}
namespace avx512 {
extern const LoopBackend table [[gnu::weak]];
}
namespace avx2 {
extern const LoopBackend table [[gnu::weak]];
extern const Int8Kernels int8_kernels;
}  // namespace avx2
namespace avx512_vnni {
extern const Int8Kernels int8_kernels;
}
namespace avx2_vnni {
extern const Int8Kernels int8_kernels;
}
#endif
#if defined(__aarch64__)
namespace neon_bf16 {
extern const LoopBackend table [[gnu::weak]];
}
namespace neon_i8mm {
extern const Int8Kernels int8_kernels;
}
namespace neon_dot {
extern const Int8Kernels int8_kernels;
}
#endif
namespace baseline {
extern const LoopBackend table [[gnu::weak]];
extern const Int8Kernels int8_kernels;
}  // namespace baseline

namespace {
struct Isa {
  const char* name;
  const LoopBackend* table;
  const Int8Kernels* int8;
  bool runs;
};
#if defined(__x86_64__)
// g++ before 11 and clang before 19 do not know the name "f16c". The check for avx2 includes that the system saves the
// registers.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
// Old compilers do not know this name either: leaf 7, subleaf 1, bit 4 of eax.
bool has_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

#if defined(__aarch64__)
// Whether the processor has a feature: by its bit in an auxiliary vector entry on Linux, by its name on macOS.
bool has_feature([[maybe_unused]] unsigned long word, [[maybe_unused]] int bit, [[maybe_unused]] const char* name) {
#if defined(__linux__)
  return getauxval(word) >> bit & 1;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}
// Every Mac with an Arm processor has SDOT, but the first macOS for it does not know this name.
bool has_neon_dot() {
#if defined(__APPLE__)
  return true;
#else
  return has_feature(16, 20, "hw.optional.arm.FEAT_DotProd");  // AT_HWCAP, HWCAP_ASIMDDP
#endif
}
bool has_neon_i8mm() { return has_neon_dot() && has_feature(26, 13, "hw.optional.arm.FEAT_I8MM"); }  // AT_HWCAP2, HWCAP2_I8MM
bool has_neon_bf16() { return has_feature(26, 14, "hw.optional.arm.FEAT_BF16"); }                    // AT_HWCAP2, HWCAP2_BF16
#endif

// The best instruction set that the processor, the build and LOOPLM_CPU_ISA allow; its table is null if there is none.
Isa choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // All features that the compiler may use with the flags in CMakeLists.txt; test/native/native.test.ts compares the two
  // lists.
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx") && __builtin_cpu_supports("fma") &&
                        has_f16c() && __builtin_cpu_supports("sse3") && __builtin_cpu_supports("ssse3") &&
                        __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool has_avx512_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
  const bool has_avx2_vnni = has_avx2 && has_avxvnni();
  // without VNNI, 512-bit vectors multiply bytes no faster than 256-bit ones
  const Int8Kernels* wide = has_avx512_vnni ? &avx512_vnni::int8_kernels : &avx2::int8_kernels;
  const Isa best_first[] = {{"avx512_bf16", &avx512_bf16::table, wide, has_avx512 && __builtin_cpu_supports("avx512bf16")},
                            {"avx512_vnni", &avx512::table, wide, has_avx512_vnni},
                            {"avx512", &avx512::table, &avx2::int8_kernels, has_avx512},
                            {"avx2_vnni", &avx2::table, &avx2_vnni::int8_kernels, has_avx2_vnni},
                            {"avx2", &avx2::table, &avx2::int8_kernels, has_avx2},
                            {"baseline", &baseline::table, &baseline::int8_kernels, true}};
#else
#if defined(__aarch64__)
  const Int8Kernels* bytes = has_neon_i8mm()  ? &neon_i8mm::int8_kernels
                             : has_neon_dot() ? &neon_dot::int8_kernels
                                              : &baseline::int8_kernels;
#endif
  const Isa best_first[] = {
    {"avx512_bf16", nullptr, nullptr, false},
    {"avx512_vnni", nullptr, nullptr, false},
    {"avx512", nullptr, nullptr, false},
    {"avx2_vnni", nullptr, nullptr, false},
    {"avx2", nullptr, nullptr, false},
#if defined(__aarch64__)
    {"neon_bf16", &neon_bf16::table, bytes, has_neon_bf16()},
    {"neon_i8mm", &baseline::table, &neon_i8mm::int8_kernels, has_neon_i8mm()},
    {"neon_dot", &baseline::table, &neon_dot::int8_kernels, has_neon_dot()},
#endif
    {"baseline", &baseline::table, &baseline::int8_kernels, true}
  };
#endif
  const char* limit = std::getenv("LOOPLM_CPU_ISA");
  bool below = !limit;  // true from the row of the limit on
  for (auto& isa : best_first) {
    if (limit && std::strcmp(isa.name, limit) == 0) below = true;
    if (below && isa.runs && isa.table) return isa;
  }
  return {};
}

}  // namespace

Context* make_context(int threads) {
  const Isa isa = choose();
  auto* ctx = new Context(threads);
  ctx->int8 = isa.int8;
  std::snprintf(ctx->description, sizeof ctx->description, "%s, %d threads", isa.name, ctx->pool.threads());
  return ctx;
}

}  // namespace looplm::cpu

extern "C" const LoopBackend* looplm_cpu_backend(void) { return looplm::cpu::choose().table; }
