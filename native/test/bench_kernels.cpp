// looplm_kernel_bench [--device cuda] [--dtype bf16|f32] [--filter TEXT] [--milliseconds 300] [--size ouro|tiny]
// looplm_kernel_bench --floors bf16|f32: only the kernels' amounts of work, as JSON, for docs/cuda-resources.md; runs
// nothing.
// Times every kernel of a device at the training shape of Ouro-1.4B, and decoding with a model of that shape, next to the
// peak rates measured in the same run. Prints JSON to standard output and a table to standard error. Needs neither Node nor a
// network. `npm run bench` does the same from JavaScript, and also times whole steps.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../backends.h"
#include "../numeric/half.h"
#include "../engine/kernel_bench.h"
#include "../engine/generation/scheduler.h"
#include "../numeric/philox.h"
#include "small_architecture.h"

namespace looplm {
namespace {

struct Options {
  std::string device = "cuda", dtype = "bf16", filter, size = "ouro";  // size tiny: only to check that everything runs
  double milliseconds = 300;
};

struct Row {
  std::string kernel;
  double seconds, flops, bytes;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The median time of batches of runs that take a few milliseconds each. Waits for the device at the end of each batch.
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
  const size_t least = milliseconds < 10 ? 1 : 5;  // one batch is enough if the run only checks that everything runs
  for (const double end = now() + milliseconds / 1000; now() < end || all.size() < least;) all.push_back(seconds_of(repeats));
  std::nth_element(all.begin(), all.begin() + ptrdiff_t(all.size() / 2), all.end());
  return {name, all[all.size() / 2], made.flops, made.bytes};
}

// A model that is quick to create: its matrices repeat one block of random numbers, and its norms are 1.
std::shared_ptr<Model> make_model(const std::shared_ptr<Device>& device, LoopDType dt, const Architecture& config) {
  auto model = std::make_shared<Model>(device, dt, config);
  const size_t block = 1 << 16, size = loop_dtype_size(dt);
  std::vector<uint8_t> numbers(block * size), ones(block * size);
  for (size_t i = 0; i < block; i++) {
    const float x = float(0.02 * normal(7, 0, 0, uint32_t(i)));
    for (auto& [host, value] : {std::pair{numbers.data(), x}, std::pair{ones.data(), 1.0f}}) {
      if (dt == LOOP_F32) reinterpret_cast<float*>(host)[i] = value;
      else reinterpret_cast<uint16_t*>(host)[i] = float_to_bf16(value);
    }
  }
  Buffer random(device, block * size), one(device, block * size);
  random.upload(numbers.data(), block * size);
  one.upload(ones.data(), block * size);
  for (const Parameter& p : model->parameters())
    for (size_t at = 0; at < p.count; at += block)
      device->run(&LoopBackend::copy, "bench", static_cast<void*>(static_cast<char*>(model->writable_data(p)) + at * size),
                  static_cast<const void*>((p.decays() ? random : one).as<>()), std::min(block, p.count - at) * size);
  return model;
}

// Greedy decoding of `rows` rows at full depth, after prompts of `prompt` tokens: the time from token to token. Bytes: the
// weights once per loop, the head, and the keys and values that are read (with half of the new tokens, on average).
Row measure_decode(const std::shared_ptr<Model>& model, int rows, int prompt, int tokens, size_t runs) {
  const Architecture& c = model->config;
  const auto run_once = [&] {
    Scheduler scheduler(model, {rows});
    for (int i = 0; i < rows; i++) {
      GenerateRequest request;
      for (int32_t j = 0; j < prompt; j++) request.prompt.push_back((i + j) % int32_t(c.vocabulary));
      request.max_new_tokens = tokens;
      request.sampling.temperature = 0;
      scheduler.add(std::move(request));
    }
    scheduler.run(Until::token);  // runs the prompts and one token of each row
    const double begin = now();
    scheduler.run(Until::idle);
    return (now() - begin) / (tokens - 1);
  };
  run_once();
  std::vector<double> all;
  while (all.size() < runs) all.push_back(run_once());
  std::nth_element(all.begin(), all.begin() + ptrdiff_t(runs / 2), all.end());
  const double block = double(c.qkv_width() + c.attention_width() + 3 * c.intermediate) * double(c.hidden),
               matrices = double(c.layers * c.loops) * block, head = double(c.vocabulary * c.hidden),
               cached = double(c.layers * c.loops) * 2 * double(c.kv_heads * c.head_dim) * (prompt + 0.5 * tokens) * rows;
  return {"decode " + std::to_string(rows) + (rows == 1 ? " row" : " rows"), all[runs / 2], 2 * rows * (matrices + head),
          double(loop_dtype_size(model->dt)) * (matrices + head + cached)};
}

bool is_roof(const std::string& name) { return name == "copy" || name == "read" || name == "byte_products"; }

const KernelShape ouro{16384, 2048, 5632, 49152, 4096, 16, 16};

int floors(const std::string& dtype) {
  std::printf("[");
  const char* separator = "";
  for (const std::string& name : kernel_names()) {
    if (is_roof(name)) continue;
    const KernelCase work = make_kernel_case(nullptr, dtype == "f32" ? LOOP_F32 : LOOP_BF16, name, ouro);
    std::printf("%s\n {\"kernel\": \"%s\", \"flops\": %.10g, \"bytes\": %.10g}", separator, name.c_str(), work.flops, work.bytes);
    separator = ",";
  }
  std::printf("]\n");
  return 0;
}

int run(const Options& o) {
  const auto device = open_device(o.device, 0);
  const LoopDType dt = o.dtype == "f32" ? LOOP_F32 : LOOP_BF16;
  const bool tiny = o.size == "tiny";
  const KernelShape shape = tiny ? KernelShape{64, 64, 96, 128, 32, 2, 2} : ouro;
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
  const auto print = [&](const Row& row) {
    const double floor = std::max(row.flops / flops_roof, row.bytes / bytes_roof);
    std::fprintf(stderr, "%-24s %10.3f ms %9.1f TFLOP/s %8.0f GB/s %5.0f %% of the roof\n", row.kernel.c_str(), 1e3 * row.seconds,
                 row.flops / row.seconds / 1e12, row.bytes / row.seconds / 1e9, 100 * floor / row.seconds);
    std::printf("%s\n {\"kernel\": \"%s\", \"seconds\": %.6g, \"flops\": %.6g, \"bytes\": %.6g, \"share\": %.4g}",
                first ? "" : ",", row.kernel.c_str(), row.seconds, row.flops, row.bytes, floor / row.seconds);
    first = false;
  };
  for (const std::string& name : kernel_names())
    if (!is_roof(name) && name.find(o.filter) != std::string::npos) print(measure(device, dt, name, shape, o.milliseconds));
  if (std::string("decode rows").find(o.filter) != std::string::npos) {
    const SmallSizes sizes{shape.vocabulary,
                           shape.hidden,
                           shape.intermediate,
                           tiny ? 2 : 24,
                           shape.heads,
                           shape.kv_heads,
                           int32_t(shape.hidden / shape.heads),
                           4};
    const auto model = make_model(device, dt, small_architecture(sizes));
    for (int rows : {1, 4, 16}) {
      const Row row = tiny ? measure_decode(model, rows, 4, 2, 1) : measure_decode(model, rows, 64, 128, 3);
      print(row);
      std::fprintf(stderr, "%24s %10.1f tokens/s\n", "", rows / row.seconds);
    }
  }
  std::printf("]}\n");
  return 0;
}

}  // namespace
}  // namespace looplm

int main(int argc, char** argv) {
  looplm::Options options;
  if (argc == 3 && std::string(argv[1]) == "--floors") return looplm::floors(argv[2]);
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
