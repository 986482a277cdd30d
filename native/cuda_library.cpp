#include "cuda_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "library_folder.h"

namespace looplm {

namespace {
// Opens the library's table; on failure `outcome` says why.
const LoopBackend* open_table(const std::filesystem::path& path, std::string& outcome) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    outcome = "file not found";
    return nullptr;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    outcome = dlerror();
    return nullptr;
  }
  const auto entry = reinterpret_cast<const LoopBackend* (*)()>(dlsym(library, "looplm_cuda_backend"));
  if (!entry) {
    outcome = "has no function looplm_cuda_backend";
    return nullptr;
  }
  const LoopBackend* table = entry();
  if (table->abi == LOOPLM_BACKEND_ABI) {
    outcome = "opened";
    return table;
  }
  outcome = "has version " + std::to_string(table->abi) + " of the kernel table, this engine " +
            std::to_string(LOOPLM_BACKEND_ABI) + ": build both from one version";
  return nullptr;
}

CudaLibrary find(bool emulated) {
  CudaLibrary found;
  const char* chosen = std::getenv("LOOPLM_CUDA_LIBRARY");  // a file chosen by the user; no other is tried
  const std::filesystem::path path = emulated ? library_folder() / "looplm_cuda_emulated.so"
                                     : chosen ? std::filesystem::path(chosen)
                                              : library_folder() / "looplm_cuda.so";
  std::string outcome;
  found.table = open_table(path, outcome);
  found.tried.push_back(path.string() + ": " + outcome);
  return found;
}
}  // namespace

const CudaLibrary& cuda_library(bool emulated) {
  static const CudaLibrary real = find(false);
  if (!emulated) return real;
  static const CudaLibrary emulation = find(true);
  return emulation;
}

}  // namespace looplm
