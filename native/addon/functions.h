// The functions of the addon, by subject; src/native.ts has their signatures.
#pragma once
#include <napi.h>

#include "executor.h"

namespace looplm::addon {

void add_tensor_functions(Napi::Env env, Napi::Object exports);
void add_model_functions(Napi::Env env, Napi::Object exports);
void add_loss_functions(Napi::Env env, Napi::Object exports);
void add_looprpt_functions(Napi::Env env, Napi::Object exports);
void add_optimizer_functions(Napi::Env env, Napi::Object exports);
void add_generation_functions(Napi::Env env, Napi::Object exports);
void add_kernel_functions(Napi::Env env, Napi::Object exports);
void add_bench_functions(Napi::Env env, Napi::Object exports);
void add_parallel_functions(Napi::Env env, Napi::Object exports);

// Wraps a function so that its C++ exceptions become JavaScript errors.
template <Napi::Value (*function)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return function(info);
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw Napi::Error(info.Env(), to_js_error(info.Env(), std::current_exception()));
  }
}
template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void add(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<guarded<function>>(env, name));
}

}  // namespace looplm::addon
