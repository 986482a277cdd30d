// MPI is opened at run time: libmpi, where this machine has one, and beside the addon the small library that native/comm/mpi.cpp
// becomes with the headers of that implementation. The addon itself links neither.
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

// Every implementation that this version knows and what became of it. libmpi is opened for its version, and closed again.
std::vector<CommLibrary> comm_libraries();

// The table of an implementation; its libraries stay open. Throws NATIVE_LOAD with what was tried and what helps.
const LoopComm* comm_library(const std::string& name);

}  // namespace looplm
