// Times kernels of the backend table on their device (bench/kernels.ts).
#include <chrono>

#include "../engine/kernel_bench.h"
#include "functions.h"
#include "input.h"

namespace looplm::addon {

namespace {

Napi::Value kernels(const Napi::CallbackInfo& info) {
  const std::vector<std::string> names = kernel_names();
  Napi::Array array = Napi::Array::New(info.Env(), names.size());
  for (uint32_t i = 0; i < names.size(); i++) array.Set(i, names[i]);
  return array;
}

Napi::Value bench_create(const Napi::CallbackInfo& info) {
  const auto context = Input(info, 0, "context").object<Executor>(Kind::context);
  const LoopDType dtype = Input(info, 1, "dtype").dtype();
  const std::string name = Input(info, 2, "kernel").text();
  const Input in(info, 3, "shape");
  const auto size = [&](const char* field) { return in[field].integer(1, 1 << 20); };
  const KernelShape shape{size("rows"),   size("hidden"),         size("intermediate"),    size("vocabulary"),
                          size("length"), int32_t(size("heads")), int32_t(size("kvHeads"))};
  return context->submit(info.Env(), nullptr, [executor = context.object, dtype, name, shape]() -> Executor::Finish {
    auto made = std::make_shared<KernelCase>(make_kernel_case(executor->device(), dtype, name, shape));
    return [executor, made](Napi::Env env) {
      Napi::Object out = Napi::Object::New(env);
      out.Set("handle", make_handle(env, {Kind::bench, executor, made}));
      out.Set("flops", made->flops);
      out.Set("bytes", made->bytes);
      return out;
    };
  });
}

// Returns a promise of the total seconds of all runs.
Napi::Value bench_run(const Napi::CallbackInfo& info) {
  const auto kernel = Input(info, 0, "kernel").object<KernelCase>(Kind::bench);
  const int64_t repeats = Input(info, 1, "repeats").integer(1, 1 << 30);
  const std::shared_ptr<Device> device = kernel.executor->device();
  return kernel.executor->submit(info.Env(), nullptr, [kernel = kernel.object, device, repeats]() -> Executor::Finish {
    device->run(&LoopBackend::synchronize, "bench");
    const auto started = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < repeats; i++) kernel->run();
    device->run(&LoopBackend::synchronize, "bench");
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    return [seconds](Napi::Env env) { return Napi::Number::New(env, seconds.count()); };
  });
}

}  // namespace

void add_bench_functions(Napi::Env env, Napi::Object exports) {
  add<kernels>(env, exports, "benchKernels");
  add<bench_create>(env, exports, "benchCreate");
  add<bench_run>(env, exports, "benchRun");
}

}  // namespace looplm::addon
