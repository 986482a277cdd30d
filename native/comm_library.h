// Opens MPI at run time: libmpi, if this machine has one, and the shim library next to the addon that native/comm/mpi.cpp is
// compiled to for that implementation. The addon itself links neither.
#pragma once
#include <string>
#include <vector>

#include "comm.h"

namespace looplm {

struct CommLibrary {
  std::string name;  // "openmpi", "mpich", "nccl"
  bool available = false;
  std::string description;  // version and file, or what is missing
};

// All known implementations and whether they can be used. Opens each libmpi for its version, and closes it again.
std::vector<CommLibrary> comm_libraries();

// The table of an implementation; its libraries stay open. Throws NATIVE_LOAD with what was tried and what to do.
const LoopComm* comm_library(const std::string& name);

}  // namespace looplm
