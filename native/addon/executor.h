// One thread per device context. Native work runs on it in the order of the calls; promises are settled on the JavaScript
// thread.
#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "../engine/device.h"

namespace looplm::addon {

using CancelFlag = std::shared_ptr<std::atomic<bool>>;

class Executor {
 public:
  // Creates the JavaScript result of a finished call; runs on the JavaScript thread.
  using Finish = std::function<Napi::Value(Napi::Env)>;
  // Runs on the executor's thread.
  using Work = std::function<Finish()>;

  Executor(Napi::Env env, std::shared_ptr<Device> device);  // device NULL: for work that uses no device
  ~Executor();
  Executor(const Executor&) = delete;

  const std::shared_ptr<Device>& device() const { return device_; }

  // Call on the JavaScript thread. `cancel` may be empty.
  Napi::Promise submit(Napi::Env env, CancelFlag cancel, Work work);
  // Call on the JavaScript thread. For work without a promise; it must not throw.
  void post(std::function<void()> work);
  // Call on the JavaScript thread. Releases an object on the executor's thread, after the work submitted so far; at once if
  // idle.
  void release(std::shared_ptr<void> object);

  // Callable from any thread. Cancels everything and waits for the thread to end. Promises stay pending.
  void stop();

 private:
  struct Task {
    CancelFlag cancel;
    Work work;
    std::shared_ptr<Napi::Promise::Deferred> deferred;  // empty for posted work
    Finish finish;
    std::exception_ptr error;
  };
  void push(Task task);
  void loop();
  void run(Task& task);
  static void settle(napi_env env, napi_value, void* self, void*);
  void settle_all(Napi::Env env);

  std::shared_ptr<Device> device_;
  napi_threadsafe_function wake_ = nullptr;
  int waiting_ = 0;  // number of pending promises, which keep the process alive; JavaScript thread only

  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Task> queue_, finished_;
  CancelFlag running_;
  size_t unfinished_ = 0;  // queued or running
  bool stopping_ = false;
  std::mutex joining_;
  std::thread thread_;
};

// A JavaScript Error with `code` and `operation`.
Napi::Value to_js_error(Napi::Env env, std::exception_ptr error);
[[noreturn]] void throw_js(Napi::Env env, const char* code, const char* operation, const std::string& message);

}  // namespace looplm::addon
