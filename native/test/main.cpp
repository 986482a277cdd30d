// looplm_kernel_tests [--backend reference|cpu|LIBRARY] [--dtype f32|bf16|f64] [--threads N] [--list] [--skip TEXT]… [filter]
// Without --dtype, tests every dtype that the backend supports. The filter selects tests whose name contains it.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "../reference/reference.h"
#include "harness.h"
#ifdef LOOPLM_WITH_CPU
#include "../cpu/cpu.h"
#endif

namespace looplm::test {
namespace {

struct Options {
  std::string backend = "reference", dtype, filter;  // a backend with a slash is the path of a shared library
  std::vector<std::string> skipped;                  // tests whose name contains one of these
  int threads = 0;
  bool list = false;
  bool takes(const std::string& name) const {
    for (const std::string& part : skipped)
      if (name.find(part) != std::string::npos) return false;
    return name.find(filter) != std::string::npos;
  }
};

struct Usage {
  std::string message;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : throw Usage{argument + " needs a value"}; };
    if (argument == "--backend") options.backend = value();
    else if (argument == "--dtype") options.dtype = value();
    else if (argument == "--threads") options.threads = std::stoi(value());
    else if (argument == "--skip") options.skipped.push_back(value());
    else if (argument == "--list") options.list = true;
    else if (argument.starts_with("-")) throw Usage{"unknown option " + argument};
    else options.filter = argument;
  }
  return options;
}

const LoopBackend* find_backend(const std::string& name) {
  if (name == "reference") return looplm_reference_backend();
#ifdef LOOPLM_WITH_CPU
  if (name == "cpu") return looplm_cpu_backend();
#endif
  if (name.find('/') == std::string::npos) throw Usage{"backend " + name + " is not in this program"};
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* entry = library ? dlsym(library, "looplm_cuda_backend") : nullptr;
  if (!entry) throw Usage{dlerror()};
  return reinterpret_cast<const LoopBackend* (*)()>(entry)();
}

const char* dtype_name(LoopDType dt) { return dt == LOOP_F64 ? "f64" : dt == LOOP_BF16 ? "bf16" : "f32"; }

std::vector<LoopDType> find_dtypes(const LoopBackend* table, const std::string& name) {
  std::vector<LoopDType> found;
  void* ctx = table->open(0, 0);
  LoopDeviceProperties properties{};
  if (table->properties(ctx, &properties) != 0)
    throw Usage{std::string("backend ") + table->name + ": its properties could not be read"};
  for (LoopDType dt : {LOOP_F32, LOOP_BF16, LOOP_F64})
    if ((properties.model_dtypes >> dt & 1) && (name.empty() || name == dtype_name(dt))) found.push_back(dt);
  table->close(ctx);
  if (found.empty()) throw Usage{std::string("backend ") + table->name + " does not support dtype " + name};
  return found;
}

// Runs one test. An exception from the backend counts as a failed case.
bool run(const Registration& registration, const Device& device, const Device& reference, int& cases) {
  Test test(std::string(registration.name) + " " + dtype_name(device.dt), device, reference);
  try {
    registration.run(test);
  } catch (const std::exception& error) {
    test.claim("", false, error.what());
  }
  cases += test.cases;
  return test.failures == 0;
}

int run_all(const Options& options) {
  const LoopBackend* table = find_backend(options.backend);
  const bool is_reference = table == looplm_reference_backend();
  Device reference(looplm_reference_backend(), LOOP_F64);
  int cases = 0, failed = 0, tests = 0;
  for (LoopDType dt : find_dtypes(table, options.dtype)) {
    Device device(table, dt, options.threads);
    for (const Registration& registration : registry()) {
      if (registration.on == On::reference_alone && !is_reference) continue;
      if (!options.takes(registration.name)) continue;
      ++tests;
      if (options.list) std::printf("%s %s\n", registration.name, dtype_name(dt));
      else failed += !run(registration, device, reference, cases);
    }
    if (!options.list) std::printf("# %s %s: %s\n", table->name, dtype_name(dt), table->describe(device.ctx));
  }
  if (!options.list) std::printf("%d tests, %d cases, %d tests failed\n", tests, cases, failed);
  return failed > 0 || tests == 0;
}

}  // namespace
}  // namespace looplm::test

int main(int argc, char** argv) {
  try {
    return looplm::test::run_all(looplm::test::parse(argc, argv));
  } catch (const looplm::test::Usage& usage) {
    std::fprintf(stderr,
                 "%s\nusage: looplm_kernel_tests [--backend reference|cpu|LIBRARY] [--dtype f32|bf16|f64] [--threads N] [--list] "
                 "[--skip TEXT]... [filter]\n",
                 usage.message.c_str());
    return 2;
  }
}
