// The addon's entry point: devices, memory, contexts and cancel flags.
#include <napi.h>
#include <sys/file.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "../backends.h"
#include "functions.h"
#include "input.h"

namespace looplm::addon {

namespace {

Napi::Value devices(const Napi::CallbackInfo& info) {
  const std::vector<DeviceInfo> found = list_devices(info.Length() > 0 && info[0].ToBoolean());
  Napi::Array array = Napi::Array::New(info.Env(), found.size());
  for (uint32_t i = 0; i < found.size(); i++) {
    Napi::Object device = Napi::Object::New(info.Env());
    device.Set("name", found[i].name);
    device.Set("available", found[i].available);
    device.Set("description", found[i].description);
    array.Set(i, device);
  }
  return array;
}

Napi::Value memory(const Napi::CallbackInfo& info) {
  const MemoryStats stats = memory_stats();
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("bytes", double(stats.allocated_bytes));
  out.Set("peak", double(stats.peak_bytes));
  out.Set("buffers", double(stats.buffers));
  return out;
}

Napi::Value device_memory(const Napi::CallbackInfo& info) {
  const Input context(info, 0, "context");
  const MemoryRoom room = context.missing() ? host_memory() : context.object<Executor>(Kind::context)->device()->memory();
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("free", double(room.free));
  out.Set("total", double(room.total));
  return out;
}

Napi::Value reset_peak(const Napi::CallbackInfo& info) {
  reset_peak_memory();
  return info.Env().Undefined();
}

Napi::Value open_context(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string name = Input(info, 0, "device").text();
  const int threads = int(Input(info, 1, "threads").integer(0, 1024));
  auto executor = std::make_shared<Executor>(env, open_device(name, threads));
  // Registered after the executor's threadsafe function, so that this hook runs before the function is destroyed: no thread
  // may call it after that.
  const auto stop = [](void* kept) {
    const std::unique_ptr<std::shared_ptr<Executor>> owner(static_cast<std::shared_ptr<Executor>*>(kept));
    (*owner)->stop();
  };
  napi_add_env_cleanup_hook(env, stop, new std::shared_ptr<Executor>(executor));
  return make_handle(env, {Kind::context, executor, executor});
}

Napi::Value create_cancel(const Napi::CallbackInfo& info) {
  return make_handle(info.Env(), {Kind::cancel, nullptr, std::make_shared<std::atomic<bool>>(false)});
}

// Takes an exclusive lock on an open file, until it is closed or the process ends. Returns false if another process has the
// lock.
Napi::Value lock_file(const Napi::CallbackInfo& info) {
  const int file = int(Input(info, 0, "file").integer(0, INT32_MAX));
  int status;
  do status = ::flock(file, LOCK_EX | LOCK_NB);
  while (status != 0 && errno == EINTR);
  if (status != 0 && errno != EWOULDBLOCK) throw Error("UNSUPPORTED", "lock", std::strerror(errno));
  return Napi::Boolean::New(info.Env(), status == 0);
}

Napi::Value cancel(const Napi::CallbackInfo& info) {
  Input(info, 0, "flag").cancel()->store(true);
  return info.Env().Undefined();
}

Napi::Object start(Napi::Env env, Napi::Object exports) {
  auto* environment = new Environment{Napi::Persistent(Handle::define(env))};
  env.SetInstanceData(environment);
  add<devices>(env, exports, "devices");
  add<memory>(env, exports, "memory");
  add<device_memory>(env, exports, "deviceMemory");
  add<reset_peak>(env, exports, "resetPeakMemory");
  add<open_context>(env, exports, "openContext");
  add<create_cancel>(env, exports, "createCancel");
  add<cancel>(env, exports, "cancel");
  add<lock_file>(env, exports, "lockFile");
  add_tensor_functions(env, exports);
  add_model_functions(env, exports);
  add_loss_functions(env, exports);
  add_looprpt_functions(env, exports);
  add_optimizer_functions(env, exports);
  add_generation_functions(env, exports);
  add_kernel_functions(env, exports);
  add_bench_functions(env, exports);
  add_parallel_functions(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(looplm, start)

}  // namespace looplm::addon
