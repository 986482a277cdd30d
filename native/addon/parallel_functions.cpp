// The group of processes that train together ("world").
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "../comm/solo.h"
#include "../comm_library.h"
#include "../engine/communicator.h"
#include "functions.h"
#include "input.h"
#include "output.h"

namespace looplm::addon {

namespace {

using HeldWorld = Held<Communicator>;
using Bytes = Communicator::Bytes;

HeldWorld read_world(const Napi::CallbackInfo& info) { return Input(info, 0, "world").object<Communicator>(Kind::world); }

Bytes read_bytes(const Input& in) {
  const Napi::TypedArray array = in.typed_array();
  if (array.TypedArrayType() != napi_uint8_array) in.fail("must be a Uint8Array");
  const auto* first = static_cast<const uint8_t*>(in.bytes());
  return {first, first + array.ElementLength()};
}
Napi::Value byte_array(Napi::Env env, const Bytes& bytes) {
  return typed_array<Napi::Uint8Array>(env, bytes.data(), bytes.size());
}
Napi::Value byte_arrays(Napi::Env env, const std::vector<Bytes>& parts) {
  Napi::Array array = Napi::Array::New(env, parts.size());
  for (uint32_t i = 0; i < parts.size(); i++) array.Set(i, byte_array(env, parts[i]));
  return array;
}

Napi::Value parallel_libraries(const Napi::CallbackInfo& info) {
  const std::vector<CommLibrary> found = comm_libraries();
  Napi::Array array = Napi::Array::New(info.Env(), found.size());
  for (uint32_t i = 0; i < found.size(); i++) {
    Napi::Object library = Napi::Object::New(info.Env());
    library.Set("name", found[i].name);
    library.Set("available", found[i].available);
    library.Set("description", found[i].description);
    array.Set(i, library);
  }
  return array;
}

// Ends the process if `open` takes longer than the time limit. It cannot throw, because the thread that could is inside
// MPI_Init.
class Watchdog {
 public:
  Watchdog(double seconds, std::string message)
      : thread_([this, seconds, message = std::move(message)] {
          std::unique_lock lock(mutex_);
          if (changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return done_; })) return;
          std::fprintf(stderr, "looplm: %s\n", message.c_str());
          std::fflush(stderr);
          _exit(1);
        }) {}
  ~Watchdog() {
    {
      std::lock_guard lock(mutex_);
      done_ = true;
      changed_.notify_one();
    }
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::thread thread_;
};

// Opens the world synchronously: JavaScript blocks until all processes have joined (comm.h says why). Later operations wait
// for other ranks on a separate thread that computes nothing.
Napi::Value parallel_open(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string library = Input(info, 0, "library").text();
  const Input in(info, 1, "options");
  const LoopCommOptions options{in["timeout"].number(), in["messageBytes"].integer(0, int64_t(1) << 30)};
  const LoopComm* table = library == "solo" ? solo_comm() : comm_library(library);
  std::shared_ptr<Communicator> world;
  {
    const Watchdog watchdog(options.timeout, in["late"].text());
    void* ctx = table->open(&options);
    if (!ctx) throw Error("PARALLEL", "open", table->last_error(nullptr));
    world = std::make_shared<Communicator>(table, ctx, options.timeout);
  }
  auto executor = std::make_shared<Executor>(env, nullptr);
  const auto stop = [](void* kept) {
    const std::unique_ptr<std::shared_ptr<Executor>> owner(static_cast<std::shared_ptr<Executor>*>(kept));
    (*owner)->stop();
  };
  napi_add_env_cleanup_hook(env, stop, new std::shared_ptr<Executor>(executor));
  return make_handle(env, {Kind::world, executor, world});
}

Napi::Value parallel_place(const Napi::CallbackInfo& info) {
  const HeldWorld world = read_world(info);
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("rank", world->rank());
  out.Set("size", world->size());
  out.Set("localRank", world->local_rank());
  out.Set("description", world->description());
  return out;
}

Napi::Value parallel_reduce(const Napi::CallbackInfo& info) {
  const HeldWorld world = read_world(info);
  const auto op = Input(info, 1, "operation").word<LoopCommReduce>({{"sum", LOOP_COMM_SUM}, {"max", LOOP_COMM_MAX}});
  std::vector<double> values = Input(info, 2, "values").doubles();
  return world.executor->submit(info.Env(), nullptr, [world = world.object, op, values]() mutable -> Executor::Finish {
    world->all_reduce(op, values);
    return [values](Napi::Env env) { return typed_array<Napi::Float64Array>(env, values.data(), values.size()); };
  });
}

Napi::Value parallel_gather(const Napi::CallbackInfo& info) {
  const HeldWorld world = read_world(info);
  const Bytes own = read_bytes(Input(info, 1, "bytes"));
  return world.executor->submit(info.Env(), nullptr, [world = world.object, own]() -> Executor::Finish {
    return [parts = world->gather(own)](Napi::Env env) { return byte_arrays(env, parts); };
  });
}

Napi::Value parallel_exchange(const Napi::CallbackInfo& info) {
  const HeldWorld world = read_world(info);
  const Input list(info, 1, "parts");
  if (int(list.length()) != world->size()) list.fail("must have one entry per rank");
  std::vector<Bytes> parts;
  for (uint32_t i = 0; i < list.length(); i++) parts.push_back(read_bytes(list[i]));
  return world.executor->submit(info.Env(), nullptr, [world = world.object, parts]() -> Executor::Finish {
    return [received = world->exchange(parts)](Napi::Env env) { return byte_arrays(env, received); };
  });
}

Napi::Value parallel_broadcast(const Napi::CallbackInfo& info) {
  const HeldWorld world = read_world(info);
  const int root = int(Input(info, 1, "root").integer(0, world->size() - 1));
  Bytes data = read_bytes(Input(info, 2, "bytes"));
  return world.executor->submit(info.Env(), nullptr, [world = world.object, root, data]() mutable -> Executor::Finish {
    world->broadcast(root, data);
    return [data](Napi::Env env) { return byte_array(env, data); };
  });
}

Napi::Value parallel_barrier(const Napi::CallbackInfo& info) {
  const HeldWorld world = read_world(info);
  return world.executor->submit(info.Env(), nullptr, [world = world.object]() -> Executor::Finish {
    world->barrier();
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

Napi::Value parallel_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), double(read_world(info)->bytes_sent()));
}
Napi::Value parallel_idle(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), read_world(info)->idle()); }

// Blocks until all ranks leave the world.
Napi::Value parallel_close(const Napi::CallbackInfo& info) {
  read_world(info)->close();
  return info.Env().Undefined();
}

// Ends all ranks. Without a world it ends only this process; its launcher then ends the others.
Napi::Value parallel_abort(const Napi::CallbackInfo& info) {
  const Input world(info, 0, "world");
  const std::string message = Input(info, 1, "message").text();
  const int status = int(Input(info, 2, "status").integer(0, 255));
  if (!world.missing()) world.object<Communicator>(Kind::world)->abort(message, status);
  else std::fprintf(stderr, "looplm: %s\n", message.c_str());
  std::fflush(stderr);
  _exit(status);
}

}  // namespace

void add_parallel_functions(Napi::Env env, Napi::Object exports) {
  add<parallel_libraries>(env, exports, "parallelLibraries");
  add<parallel_open>(env, exports, "parallelOpen");
  add<parallel_place>(env, exports, "parallelPlace");
  add<parallel_reduce>(env, exports, "parallelReduce");
  add<parallel_gather>(env, exports, "parallelGather");
  add<parallel_exchange>(env, exports, "parallelExchange");
  add<parallel_broadcast>(env, exports, "parallelBroadcast");
  add<parallel_barrier>(env, exports, "parallelBarrier");
  add<parallel_bytes>(env, exports, "parallelBytes");
  add<parallel_idle>(env, exports, "parallelIdle");
  add<parallel_close>(env, exports, "parallelClose");
  add<parallel_abort>(env, exports, "parallelAbort");
}

}  // namespace looplm::addon
