#include "banks.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "emulator.h"

namespace looplm::emulator {
namespace {

constexpr int banks = 32, word_bytes = 4;

struct Totals {
  uint64_t phases = 0, cycles = 0;
};

// Totals over all launches of this process; written when it ends.
struct Report {
  const char* path = std::getenv("LOOPLM_EMULATOR_BANKS");
  std::mutex mutex;
  std::map<const void*, Totals> kernels;
  ~Report() {
    std::FILE* file = path ? std::fopen(path, "w") : nullptr;
    if (!file) return;
    for (const auto& [kernel, totals] : kernels) {
      Dl_info info{};
      dladdr(kernel, &info);
      std::fprintf(file, "%zx %llu %llu\n", size_t(static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase)),
                   static_cast<unsigned long long>(totals.phases), static_cast<unsigned long long>(totals.cycles));
    }
    std::fclose(file);
  }
};
Report& report() {
  static Report instance;
  return instance;
}

// One instruction of a warp: the byte offset that each lane accessed; -1: none.
struct Instruction {
  size_t bytes;
  std::array<int64_t, warp_size> at;
};
struct Accesses {
  std::vector<Instruction> instructions;
  size_t next[warp_size] = {};
};
thread_local std::map<const Warp*, Accesses> warps;

void add(Totals& totals, const Instruction& instruction) {
  const size_t lanes = instruction.bytes <= 4 ? 32 : instruction.bytes <= 8 ? 16 : 8;
  for (size_t first = 0; first < warp_size; first += lanes) {
    std::set<int64_t> words;
    for (size_t lane = first; lane < first + lanes; lane++)
      for (size_t byte = 0; instruction.at[lane] >= 0 && byte < std::max<size_t>(instruction.bytes, 1); byte += word_bytes)
        words.insert((instruction.at[lane] + int64_t(byte)) / word_bytes);
    if (words.empty()) continue;
    uint64_t of_bank[banks] = {};
    for (int64_t word : words) of_bank[word % banks]++;
    totals.phases++;
    totals.cycles += *std::max_element(of_bank, of_bank + banks);
  }
}

}  // namespace

const bool counting_banks = report().path != nullptr;

void note_access(Thread& thread, const unsigned char* at, size_t bytes) {
  Accesses& warp = warps[thread.warp];
  const size_t lane = thread.lane(), number = warp.next[lane]++;
  if (number == warp.instructions.size()) {
    warp.instructions.push_back({bytes, {}});
    warp.instructions.back().at.fill(-1);
  }
  Instruction& instruction = warp.instructions[number];
  if (instruction.bytes == bytes) instruction.at[lane] = at - thread.block->shared;
}

void settle_accesses(Thread& any, const void* kernel) {
  Accesses& warp = warps[any.warp];
  if (!warp.instructions.empty()) {
    const std::lock_guard lock(report().mutex);
    for (const Instruction& instruction : warp.instructions) add(report().kernels[kernel], instruction);
  }
  warp = {};
}

}  // namespace looplm::emulator
