// Ranks as threads of one process, for the native tests. It detects errors that MPI does not: ranks that call different
// operations, or pass sizes that do not match.
#pragma once
#include <vector>

#include "../comm.h"

namespace looplm {

const LoopComm* threads_comm();
// Creates a world: one context for the thread of each rank. The table's `open` creates none.
std::vector<void*> open_threads(int size, double timeout);

}  // namespace looplm
