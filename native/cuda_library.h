// The CUDA backend is its own shared library, opened at run time from the folder of this addon and never closed.
#pragma once
#include <string>
#include <vector>

#include "backend.h"

namespace looplm {

struct CudaLibrary {
  const LoopBackend* table = nullptr;  // NULL: no candidate could be used
  std::vector<std::string> tried;      // each with what became of it
};

// The first usable candidate, looked for once. `emulated`: the same kernels as g++ compiled them, which only the tests build.
const CudaLibrary& cuda_library(bool emulated);

}  // namespace looplm
