// How much memory this process can still allocate, given the machine, its containers (control groups) and its own limits.
#pragma once
#include <cstddef>
#include <string>

namespace looplm {

struct MemoryRoom {  // bytes
  size_t free = 0, total = 0;
  size_t swap = 0;  // also free, but slow
};

// The smallest room that the machine, the control groups above the process, and its limits (ulimit -v, -d) leave. root:
// prefix of /proc and /sys, for tests. Outside Linux all of the machine's memory counts as free.
MemoryRoom host_memory(const std::string& root = "");

}  // namespace looplm
