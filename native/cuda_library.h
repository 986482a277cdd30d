// The CUDA backend is a separate shared library. It is opened at run time from the addon's folder and never closed.
#pragma once
#include <string>
#include <vector>

#include "backend.h"

namespace looplm {

struct CudaLibrary {
  const LoopBackend* table = nullptr;  // NULL: no candidate could be used
  std::vector<std::string> tried;      // every candidate with its outcome
};

// The first usable candidate; searched for only once. emulated: the same kernels compiled by g++ for the CPU, which only
// tests build.
const CudaLibrary& cuda_library(bool emulated);

}  // namespace looplm
