#include "backends.h"

#include <cstdlib>

#include "cpu/cpu.h"
#include "cuda_library.h"
#include "reference/reference.h"

namespace looplm {

namespace {

constexpr const char* emulated_name = "cuda-emulated";
bool is_cuda(const std::string& name) { return name == "cuda" || name.starts_with("cuda:"); }
// "cuda" and "cuda:0" are the first device, "cuda:1" the second.
int device_index(const std::string& name) {
  const size_t colon = name.find(':');
  if (colon == std::string::npos) return 0;
  const std::string digits = name.substr(colon + 1);
  if (digits.empty() || digits.size() > 4 || digits.find_first_not_of("0123456789") != std::string::npos)
    throw Error("INVALID_ARGUMENT", "device", "\"" + name + "\" is not a device: the first one is \"cuda:0\"");
  return std::stoi(digits);
}

std::string joined(const std::vector<std::string>& lines) {
  std::string out;
  for (const std::string& line : lines) out += (out.empty() ? "" : "; ") + line;
  return out;
}

const LoopBackend* find_backend(const std::string& name) {
  if (name == "cpu") {
    if (const LoopBackend* table = looplm_cpu_backend()) return table;
    const char* asked = std::getenv("LOOPLM_CPU_ISA");
    throw Error("UNSUPPORTED", "device",
                (asked ? "LOOPLM_CPU_ISA in the environment is \"" + std::string(asked) +
                             "\"; it takes avx512_bf16, avx512_vnni, avx512, avx2_vnni, avx2, neon_bf16, neon_i8mm, neon_dot or "
                             "baseline, and this build may have some of them only"
                       : "this build has no kernels for the processor") +
                    " (npm run build makes all)");
  }
  if (name == "reference") return looplm_reference_backend();
  if (is_cuda(name) || name == emulated_name) {
    const CudaLibrary& library = cuda_library(name == emulated_name);
    if (library.table) return library.table;
    throw Error("UNSUPPORTED", "device", "device \"" + name + "\" needs the CUDA library; tried " + joined(library.tried));
  }
  throw Error("UNSUPPORTED", "device", "unknown device \"" + name + "\": there are \"cpu\", \"reference\" and \"cuda\"");
}

Error could_not_be_opened(const std::string& name, const LoopBackend* table) {
  return Error("UNSUPPORTED", "device",
               "device \"" + name + "\" could not be opened: " + table->last_error(nullptr) +
                   (is_cuda(name) ? "; tried " + joined(cuda_library(false).tried) : ""));
}

}  // namespace

std::shared_ptr<Device> open_device(const std::string& name, int threads) {
  const LoopBackend* table = find_backend(name);
  void* context = table->open(device_index(name), threads);
  if (!context) throw could_not_be_opened(name, table);
  return std::make_shared<Device>(name, table, context, threads);
}

std::vector<DeviceInfo> list_devices(bool opened) {
  std::vector<DeviceInfo> out;
  const auto not_used = [](const std::string& name, const Error& error) {
    return DeviceInfo{name, std::string("not used: ") + error.what(), false};
  };
  for (const char* name : {"cpu", "reference"}) {
    try {
      out.push_back({name, open_device(name, 0)->description(), true});
    } catch (const Error& error) {
      out.push_back(not_used(name, error));
    }
  }
  // the first CUDA device, or the reason why there is none; then all others
  const CudaLibrary& library = cuda_library(false);
  for (int i = 0;; i++) {
    const std::string name = i == 0 ? "cuda" : "cuda:" + std::to_string(i);
    try {
      const LoopBackend* table = find_backend(name);
      const char* found = table->inspect(i);
      if (!found && i > 0) return out;
      if (!found) throw could_not_be_opened(name, table);
      const std::string description = found;
      out.push_back({name, (opened ? open_device(name, 0)->description() : description) + "; " + joined(library.tried), true});
    } catch (const Error& error) {
      out.push_back(not_used(name, error));
      if (!library.table || i == 0) return out;
    }
  }
}

}  // namespace looplm
