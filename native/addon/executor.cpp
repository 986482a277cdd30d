#include "executor.h"

#include <cstdlib>
#include <new>
#include <set>
#include <utility>
#include <vector>

namespace looplm::addon {

namespace {

// All executors of the process. process.exit() ends without tearing environments down. No thread may then run kernels while
// the static objects that they use are being destroyed.
struct Living {
  std::mutex mutex;
  std::set<Executor*> executors;
};
Living& living() {
  static Living* instance = new Living;  // never destroyed, because executors may outlive static objects
  return *instance;
}
void stop_all() {
  std::lock_guard lock(living().mutex);
  for (Executor* executor : living().executors) executor->stop();
}
// Exit handlers run in reverse order of registration. This one must run before those of the libraries whose devices it stops.
// CUDA's runtime registers its own when its first device is opened, perhaps long after the first executor, so it is
// registered again then.
void stop_at_exit(bool cuda) {
  static const int first = std::atexit(stop_all);
  if (!cuda) return;
  static const int after_cuda = std::atexit(stop_all);
  (void)first, (void)after_cuda;
}

}  // namespace

Executor::Executor(Napi::Env env, std::shared_ptr<Device> device) : device_(std::move(device)) {
  const Napi::String name = Napi::String::New(env, "looplm");
  const napi_status status =
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, settle, &wake_);
  if (status != napi_ok) throw Napi::Error::New(env, "looplm: napi_create_threadsafe_function failed");
  napi_unref_threadsafe_function(env, wake_);
  stop_at_exit(device_ && !device_->host_visible());
  std::lock_guard lock(living().mutex);
  const auto place = living().executors.insert(this).first;
  try {
    thread_ = std::thread([this] { loop(); });
  } catch (...) {
    living().executors.erase(place);
    napi_release_threadsafe_function(wake_, napi_tsfn_abort);
    throw;
  }
}

Executor::~Executor() {
  {
    std::lock_guard lock(living().mutex);
    living().executors.erase(this);
  }
  stop();
}

Napi::Promise Executor::submit(Napi::Env env, CancelFlag cancel, Work work) {
  auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
  if (!cancel) cancel = std::make_shared<std::atomic<bool>>(false);
  push({std::move(cancel), std::move(work), deferred, nullptr, nullptr});
  if (waiting_++ == 0)
    napi_ref_threadsafe_function(env, wake_);  // last, so that nothing waits for a call whose allocation
                                               // failed
  return deferred->Promise();
}

void Executor::post(std::function<void()> work) {
  push({std::make_shared<std::atomic<bool>>(false), [work = std::move(work)]() -> Finish { return work(), nullptr; }, nullptr,
        nullptr, nullptr});
}

void Executor::release(std::shared_ptr<void> object) {
  {
    std::lock_guard lock(mutex_);
    if (unfinished_ == 0)
      return;                      // nothing is running, and only this thread submits: nothing can start before `object` is
                                   // destroyed
    if (object.use_count() > 1) {  // a running call also holds it, and drops it under the lock before its promise is settled
      object.reset();
      return;
    }
  }
  try {
    post([object = std::move(object)] {});
  } catch (const std::bad_alloc&) {  // a finalizer must not throw; the object was destroyed on this thread instead
  }
}

void Executor::push(Task task) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  queue_.push_back(std::move(task));
  unfinished_++;
  changed_.notify_one();
}

void Executor::stop() {
  std::lock_guard joining(joining_);
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    if (running_) running_->store(true);
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  std::list<Task> queued, finished;  // results that nobody collected may hold the executor itself
  std::lock_guard lock(mutex_);
  queued.swap(queue_);
  finished.swap(finished_);
}

void Executor::loop() {
  for (;;) {
    std::list<Task> own;  // the task is moved between lists, which allocates nothing: running out of memory here could not be
                          // reported
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      own.splice(own.begin(), queue_, queue_.begin());
      running_ = own.front().cancel;
    }
    Task& task = own.front();
    run(task);
    std::lock_guard lock(mutex_);
    task.work = nullptr;  // releases the objects that the call kept alive before it counts as finished
    running_ = nullptr;
    unfinished_--;
    if (stopping_) return;
    if (!task.deferred) continue;
    finished_.splice(finished_.end(), own);
    napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
  }
}

void Executor::run(Task& task) {
  try {
    if (task.cancel->load()) throw Error("ABORTED", "executor", "the operation was aborted by its AbortSignal");
    if (device_) device_->cancel = task.cancel.get();
    task.finish = task.work();
  } catch (...) {
    task.error = std::current_exception();
  }
  if (device_) device_->cancel = nullptr;
}

void Executor::settle(napi_env env, napi_value, void* self, void*) {
  if (env == nullptr) return;  // the environment is being torn down
  static_cast<Executor*>(self)->settle_all(env);
}

void Executor::settle_all(Napi::Env env) {
  std::list<Task> tasks;
  {
    std::lock_guard lock(mutex_);
    tasks.swap(finished_);
  }
  for (Task& task : tasks) {
    if (--waiting_ == 0) napi_unref_threadsafe_function(env, wake_);
    Napi::HandleScope scope(env);
    try {
      Napi::Value value;
      try {
        if (!task.error) value = task.finish(env);
      } catch (const Napi::Error&) {
        throw;
      } catch (...) {  // out of memory while creating the result
        task.error = std::current_exception();
      }
      if (task.error) task.deferred->Reject(to_js_error(env, task.error));
      else task.deferred->Resolve(value);
    } catch (const Napi::Error& error) {
      if (env.IsExceptionPending()) env.GetAndClearPendingException();
      try {
        task.deferred->Reject(error.Value());
      } catch (const Napi::Error&) {  // JavaScript can no longer run: a worker is being terminated
      }
    }
  }
}

namespace {

Napi::Value make_error(Napi::Env env, const std::string& code, const std::string& operation, const std::string& message) {
  Napi::Object error = Napi::Error::New(env, message).Value();
  error.Set("code", code);
  error.Set("operation", operation);
  return error;
}

}  // namespace

constexpr const char* host_memory_error =
    "host memory could not be allocated: pass fewer or shorter sequences in one call, or raise the limit of this process "
    "(ulimit -v, container)";

Napi::Value to_js_error(Napi::Env env, std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return make_error(env, e.code, e.operation, e.what());
  } catch (const std::bad_alloc&) {
    return make_error(env, "OUT_OF_MEMORY", "host", host_memory_error);
  } catch (const std::length_error&) {  // a vector longer than the address space
    return make_error(env, "OUT_OF_MEMORY", "host", host_memory_error);
  } catch (const std::system_error& e) {
    return make_error(env, "OUT_OF_MEMORY", "host", std::string("the system could not create another thread: ") + e.what());
  } catch (const std::exception& e) {
    return make_error(env, "INTERNAL", "engine", e.what());
  } catch (...) {
    return make_error(env, "INTERNAL", "engine", "an unknown exception");
  }
}

void throw_js(Napi::Env env, const char* code, const char* operation, const std::string& message) {
  throw Napi::Error(env, make_error(env, code, operation, message));
}

}  // namespace looplm::addon
