// looplm_kernel_bench [--device cuda] [--dtype bf16|f32] [--filter TEXT] [--milliseconds 300] [--size ouro|tiny]
// Every kernel of a device at the training shape of Ouro-1.4B, beside the roofs measured in the same run: a JSON document on
// standard output, a table on standard error. Needs neither Node nor a network; `npm run bench` does the same from JavaScript,
// and whole steps.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../engine/kernel_bench.h"

namespace looplm {
namespace {

struct Options {
  std::string device = "cuda", dtype = "bf16", filter, size = "ouro";  // tiny: to see that it runs
  double milliseconds = 300;
};

struct Row {
  std::string kernel;
  double seconds, flops, bytes;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The median of batches that take a few milliseconds each, the device waited for at the end of each.
Row measure(const std::shared_ptr<Device>& device, LoopDType dt, const std::string& name, const KernelShape& shape,
            double milliseconds) {
  const KernelCase made = make_kernel_case(device, dt, name, shape);
  const auto seconds_of = [&](int repeats) {
    const double begin = now();
    for (int i = 0; i < repeats; i++) made.run();
    device->run(&LoopBackend::synchronize, "bench");
    return (now() - begin) / repeats;
  };
  seconds_of(2);
  const double once = seconds_of(1);
  const int repeats = int(std::clamp(0.005 / once, 1.0, 1000.0));
  std::vector<double> all;
  for (const double end = now() + milliseconds / 1000; now() < end || all.size() < 5;) all.push_back(seconds_of(repeats));
  std::nth_element(all.begin(), all.begin() + ptrdiff_t(all.size() / 2), all.end());
  return {name, all[all.size() / 2], made.flops, made.bytes};
}

int run(const Options& o) {
  const auto device = std::make_shared<Device>(o.device, 0);
  const LoopDType dt = o.dtype == "f32" ? LOOP_F32 : LOOP_BF16;
  const bool tiny = o.size == "tiny";
  const KernelShape shape = tiny ? KernelShape{64, 64, 96, 128, 32, 2, 2} : KernelShape{16384, 2048, 5632, 49152, 4096, 16, 16};
  KernelShape square = shape;
  square.rows = square.hidden = square.intermediate = tiny ? 64 : 8192;
  const Row gemm = measure(device, dt, "gemm", square, o.milliseconds), copy = measure(device, dt, "copy", shape, o.milliseconds);
  const double flops_roof = gemm.flops / gemm.seconds, bytes_roof = copy.bytes / copy.seconds;
  std::fprintf(stderr, "%s\n%s: roofs of this run are %.3g TFLOP/s (%lld cubed) and %.3g GB/s (copy)\n",
               device->description().c_str(), o.dtype.c_str(), flops_roof / 1e12, static_cast<long long>(square.rows),
               bytes_roof / 1e9);
  std::printf(
      "{\"device\": \"%s\", \"dtype\": \"%s\", \"flops_roof\": %.6g, \"bytes_roof\": %.6g, \"shape\": "
      "\"N 16384, D 2048, F 5632, V 49152, S 4096, 16 heads\", \"kernels\": [",
      device->description().c_str(), o.dtype.c_str(), flops_roof, bytes_roof);
  bool first = true;
  for (const std::string& name : kernel_names()) {
    if (name == "copy" || name == "read" || name.find(o.filter) == std::string::npos) continue;
    const Row row = measure(device, dt, name, shape, o.milliseconds);
    const double floor = std::max(row.flops / flops_roof, row.bytes / bytes_roof);
    std::fprintf(stderr, "%-24s %10.3f ms %9.1f TFLOP/s %8.0f GB/s %5.0f %% of the roof\n", name.c_str(), 1e3 * row.seconds,
                 row.flops / row.seconds / 1e12, row.bytes / row.seconds / 1e9, 100 * floor / row.seconds);
    std::printf("%s\n {\"kernel\": \"%s\", \"seconds\": %.6g, \"flops\": %.6g, \"bytes\": %.6g, \"share\": %.4g}",
                first ? "" : ",", name.c_str(), row.seconds, row.flops, row.bytes, floor / row.seconds);
    first = false;
  }
  std::printf("]}\n");
  return 0;
}

}  // namespace
}  // namespace looplm

int main(int argc, char** argv) {
  looplm::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--device") options.device = value;
    else if (name == "--dtype") options.dtype = value;
    else if (name == "--filter") options.filter = value;
    else if (name == "--size") options.size = value;
    else if (name == "--milliseconds") options.milliseconds = std::stod(value);
    else return std::fprintf(stderr, "unknown option %s\n", name.c_str()), 2;
  }
  try {
    return looplm::run(options);
  } catch (const looplm::Error& error) {
    return std::fprintf(stderr, "%s: %s\n", error.operation.c_str(), error.what()), 1;
  }
}
