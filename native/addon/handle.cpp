#include "handle.h"

#include <utility>

namespace looplm::addon {

namespace {

constexpr napi_type_tag HANDLE_TAG = {0x6c6f6f706c6d0001ull, 0x68616e646c650001ull};

}  // namespace

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::context:
      return "context";
    case Kind::tensor:
      return "tensor";
    case Kind::model:
      return "model";
    case Kind::optimizer:
      return "optimizer";
    case Kind::scheduler:
      return "scheduler";
    case Kind::average:
      return "moving average";
    case Kind::bench:
      return "kernel under measurement";
    case Kind::cancel:
      return "cancel flag";
    case Kind::world:
      return "world";
  }
  return "object";
}

Napi::Function Handle::define(Napi::Env env) {
  return DefineClass(env, "NativeHandle",
                     {InstanceAccessor<&Handle::kind>("kind"), InstanceAccessor<&Handle::disposed>("disposed"),
                      InstanceMethod<&Handle::dispose>("dispose")});
}

Handle::Handle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Handle>(info) {
  if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "only looplm creates native handles");
  content_ = std::move(*info[0].As<Napi::External<Content>>().Data());
  if (napi_type_tag_object(info.Env(), info.This(), &HANDLE_TAG) != napi_ok) throw Napi::Error::New(info.Env());
}

Handle::~Handle() { release_content(); }

void Handle::release_content() {
  if (!content_.object) return;
  if (content_.executor) content_.executor->release(std::move(content_.object));
  else content_.object.reset();
  content_.object = nullptr;
}

Content* Handle::content(Napi::Env env, Napi::Value value) {
  bool tagged = false;
  if (!value.IsObject() || napi_check_object_type_tag(env, value, &HANDLE_TAG, &tagged) != napi_ok || !tagged) return nullptr;
  return &Unwrap(value.As<Napi::Object>())->content_;
}

Napi::Value Handle::kind(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), kind_name(content_.kind)); }
Napi::Value Handle::disposed(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), !content_.object); }
Napi::Value Handle::dispose(const Napi::CallbackInfo& info) {
  if (content_.kind != Kind::context) release_content();
  report_memory(info.Env());
  return info.Env().Undefined();
}

Napi::Value make_handle(Napi::Env env, Content content) {
  const Napi::Value handle = env.GetInstanceData<Environment>()->handle.New({Napi::External<Content>::New(env, &content)});
  report_memory(env);
  return handle;
}

void report_memory(Napi::Env env) {
  Environment* environment = env.GetInstanceData<Environment>();
  const int64_t held = int64_t(memory_stats().allocated_bytes);
  Napi::MemoryManagement::AdjustExternalMemory(env, held - environment->reported_bytes);
  environment->reported_bytes = held;
}

}  // namespace looplm::addon
