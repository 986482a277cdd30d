// The folder of the file that contains this code: the addon's, where the CUDA and MPI libraries are.
#pragma once
#include <dlfcn.h>

#include <filesystem>

namespace looplm {

inline std::filesystem::path library_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&library_folder), &info) == 0 || !info.dli_fname) return {};
  return std::filesystem::path(info.dli_fname).parent_path();
}

}  // namespace looplm
