#include "comm_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "comm/version_text.h"
#include "engine/error.h"
#include "library_folder.h"
#include "nccl_version.h"

namespace looplm {

namespace {

namespace fs = std::filesystem;

// An MPI implementation: the names of its library, which identify the ABI, and the first words of its version text.
struct Implementation {
  const char* name;
  std::vector<const char*> libraries;
  std::vector<const char*> versions;
  const char* packages;
};
const std::vector<Implementation>& implementations() {
  // never libmpi.so: that is whichever implementation was installed last
  static const std::vector<Implementation> known = {
      {"openmpi", {"libmpi.so.40"}, {"Open MPI"}, "libopenmpi3 or openmpi-bin"},
      {"mpich", {"libmpi.so.12", "libmpich.so.12"}, {"MPICH", "Intel", "MVAPICH", "CRAY MPICH"}, "libmpich12 or mpich"},
  };
  return known;
}

std::string file_of(const void* symbol) {
  Dl_info info;
  return dladdr(symbol, &info) != 0 && info.dli_fname ? info.dli_fname : "";
}

struct Opened {
  void* library = nullptr;
  std::string description;  // or why it could not be opened
};

// Works around a crash. Both MPIs use UCX, which tests its memory hooks when it is loaded: it moves the end of the heap up
// and down by a page. If V8's code is directly above Node's heap, the first move fails, and the second takes a page away from
// malloc. Without hooks, UCX registers memory with the network anew for each transfer. A value set by the user is kept.
void disable_ucx_memory_hooks() { setenv("UCX_MEM_MMAP_HOOK_MODE", "none", 0); }

// Opens the first library of the implementation that exists.
Opened open_mpi(const Implementation& mpi, int flags) {
  const char* chosen = std::getenv("LOOPLM_MPI_LIBRARY");  // a file chosen by the user; no other is tried
  std::vector<std::string> names(mpi.libraries.begin(), mpi.libraries.end());
  if (chosen) names = {chosen};
  std::string tried;
  disable_ucx_memory_hooks();
  for (const std::string& name : names) {
    void* library = dlopen(name.c_str(), flags);
    if (!library) {
      tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
      continue;
    }
    const auto version = reinterpret_cast<int (*)(char*, int*)>(dlsym(library, "MPI_Get_library_version"));
    std::vector<char> text(1 << 16);  // more than MPI_MAX_LIBRARY_VERSION_STRING of any MPI
    int length = 0;
    if (version && version(text.data(), &length) == 0) {
      const std::string found = mpi_version_text(std::string(text.data(), size_t(length)));
      for (const char* begin : mpi.versions)
        if (found.starts_with(begin)) return {library, found + " (" + file_of(reinterpret_cast<const void*>(version)) + ")"};
      tried += (tried.empty() ? "" : "; ") + name + " is " + found;
    } else {
      tried += (tried.empty() ? "" : "; ") + name + " is not an MPI library";
    }
    dlclose(library);
  }
  return {nullptr, tried};
}

fs::path shim_of(const Implementation& mpi) { return library_folder() / (std::string("looplm_") + mpi.name + ".so"); }

const Implementation& mpi_named(const std::string& name) {
  for (const Implementation& mpi : implementations())
    if (name == mpi.name) return mpi;
  throw Error("INVALID_ARGUMENT", "parallel", "unknown MPI \"" + name + "\": use openmpi or mpich");
}

const LoopComm* open_mpi_table(const Implementation& mpi) {
  const auto refuse = [](const std::string& why) { throw Error("NATIVE_LOAD", "parallel", why); };
  const Opened opened = open_mpi(mpi, RTLD_NOW | RTLD_GLOBAL);  // RTLD_GLOBAL, so that the shim library finds MPI's symbols
  if (!opened.library)
    refuse(std::string(mpi.name) + ": " + opened.description + ". Install it (Debian: " + mpi.packages +
           "), load its module, or add its folder to LD_LIBRARY_PATH");
  const fs::path path = shim_of(mpi);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library)
    refuse(std::string(dlerror()) + ". It is built with the headers of " + mpi.name +
           ": install them and build a checkout (npm run build)");
  const auto entry = reinterpret_cast<const LoopComm* (*)()>(dlsym(library, "looplm_comm"));
  const LoopComm* table = entry ? entry() : nullptr;
  if (!table || table->abi != LOOPLM_COMM_ABI || table->name != std::string(mpi.name))
    refuse(path.string() + " belongs to another version of looplm: build both from one version");
  return table;
}

// The NCCL that cuda/nccl.cu would open.
CommLibrary nccl() {
  const char* chosen = std::getenv("LOOPLM_NCCL");
  if (chosen && std::string(chosen) == "off") return {"nccl", false, "LOOPLM_NCCL=off"};
  void* library = dlopen(chosen ? chosen : "libnccl.so.2", RTLD_LAZY | RTLD_LOCAL);
  if (!library) return {"nccl", false, std::string(dlerror()) + nccl_packages};
  const auto version = reinterpret_cast<int (*)(int*)>(dlsym(library, "ncclGetVersion"));
  int v = 0;
  CommLibrary found = {"nccl", false, "no NCCL"};
  if (version && version(&v) == 0) {
    found.available = v >= oldest_nccl;
    found.description = "NCCL " + nccl_version_text(v) + " (" + file_of(reinterpret_cast<const void*>(version)) + ")" +
                        (found.available ? "" : ": 2.7 or later is needed");
  }
  dlclose(library);
  return found;
}

}  // namespace

std::vector<CommLibrary> comm_libraries() {
  std::vector<CommLibrary> out;
  for (const Implementation& mpi : implementations()) {
    const Opened opened = open_mpi(mpi, RTLD_LAZY | RTLD_LOCAL);
    const fs::path own = shim_of(mpi);
    std::error_code ignored;
    const bool built = fs::exists(own, ignored);
    if (!opened.library) out.push_back({mpi.name, false, opened.description});
    else if (!built) out.push_back({mpi.name, false, opened.description + "; this build has no " + own.filename().string()});
    else out.push_back({mpi.name, true, opened.description});
    if (opened.library) dlclose(opened.library);
  }
  out.push_back(nccl());
  return out;
}

const LoopComm* comm_library(const std::string& name) {
  static const LoopComm* opened = nullptr;  // MPI can start only once in a process
  if (opened && name != opened->name)
    throw Error("INVALID_ARGUMENT", "parallel", std::string("this process uses ") + opened->name + " already");
  if (!opened) opened = open_mpi_table(mpi_named(name));
  return opened;
}

}  // namespace looplm
