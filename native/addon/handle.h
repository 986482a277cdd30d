// Engine objects as JavaScript holds them. A handle shares its object with the running calls. dispose(), or the garbage
// collector as a fallback, releases it on the executor's thread.
#pragma once
#include <napi.h>

#include <memory>
#include <string>

#include "executor.h"

namespace looplm::addon {

enum class Kind { context, tensor, model, optimizer, scheduler, average, bench, cancel, world };
const char* kind_name(Kind kind);

struct Content {
  Kind kind;
  std::shared_ptr<Executor> executor;  // empty for a cancel flag
  std::shared_ptr<void> object;        // empty once disposed
};

class Handle : public Napi::ObjectWrap<Handle> {
 public:
  static Napi::Function define(Napi::Env env);
  // The content of a handle, or nullptr for any other value.
  static Content* content(Napi::Env env, Napi::Value value);

  explicit Handle(const Napi::CallbackInfo& info);
  ~Handle() override;

 private:
  Napi::Value kind(const Napi::CallbackInfo& info);
  Napi::Value disposed(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);
  void release_content();
  Content content_;
};

Napi::Value make_handle(Napi::Env env, Content content);

// State of one environment (the main thread or a worker).
struct Environment {
  Napi::FunctionReference handle;
  int64_t reported_bytes = 0;
};
// Reports the engine's memory to the garbage collector.
void report_memory(Napi::Env env);

}  // namespace looplm::addon
