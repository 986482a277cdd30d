// A world of one rank, used if no launcher started the process.
#pragma once
#include "../comm.h"

namespace looplm {

const LoopComm* solo_comm();

}  // namespace looplm
