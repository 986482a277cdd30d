// One thread per device context: native work runs there, in the order of the calls, and its promises are settled on the
// JavaScript thread.
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
  // Makes the JavaScript value of a finished call; runs on the JavaScript thread.
  using Finish = std::function<Napi::Value(Napi::Env)>;
  // Runs on the executor's thread.
  using Work = std::function<Finish()>;

  Executor(Napi::Env env, std::shared_ptr<Device> device);  // NULL: for work that no device does
  ~Executor();
  Executor(const Executor&) = delete;

  const std::shared_ptr<Device>& device() const { return device_; }

  // JavaScript thread. `cancel` may be empty.
  Napi::Promise submit(Napi::Env env, CancelFlag cancel, Work work);
  // JavaScript thread. Work whose outcome nobody waits for; it must not throw.
  void post(std::function<void()> work);
  // JavaScript thread. Gives an object up on the executor's thread, after the work that was submitted before; at once when idle.
  void release(std::shared_ptr<void> object);

  // Any thread. Cancels everything, and waits for the thread to end. Promises stay pending.
  void stop();

 private:
  struct Task {
    CancelFlag cancel;
    Work work;
    std::shared_ptr<Napi::Promise::Deferred> deferred;  // empty: posted
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
  int waiting_ = 0;  // promises under way; JavaScript thread only. They keep the process alive

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
