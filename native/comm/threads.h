// Ranks as threads of one process: the reference that the native tests hold other code against. It notices what MPI does not:
// ranks that call different operations, or whose sizes do not fit together.
#pragma once
#include <vector>

#include "../comm.h"

namespace looplm {

const LoopComm* threads_comm();
// The contexts of a new world, one for the thread of each rank. The table's `open` makes none.
std::vector<void*> open_threads(int size, double timeout);

}  // namespace looplm
