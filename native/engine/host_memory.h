// How much memory this process can still have: of the machine, of its containers (control groups) and of its own limits.
#pragma once
#include <cstddef>
#include <string>

namespace looplm {

struct MemoryRoom {  // bytes
  size_t free = 0, total = 0;
  size_t swap = 0;  // free too, but slow
};

// The least of what the machine, every control group above the process, and its limits (ulimit -v, -d) leave. root: where /proc
// and /sys lie, for tests. Outside Linux all of the machine's memory counts as free.
MemoryRoom host_memory(const std::string& root = "");

}  // namespace looplm
