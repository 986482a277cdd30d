// The arguments of the addon's functions. Every value is checked and copied before the call returns to JavaScript.
#pragma once
#include <napi.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../engine/loss.h"
#include "../engine/tensor_ops.h"
#include "handle.h"

namespace looplm::addon {

// An engine object and the executor of its device.
template <class T>
struct Held {
  std::shared_ptr<T> object;
  std::shared_ptr<Executor> executor;
  T* operator->() const { return object.get(); }
  T& operator*() const { return *object; }
};

// One argument, or a field or element of one. Throws INVALID_ARGUMENT with its path, such as "options.temperature".
class Input {
 public:
  Input(const Napi::CallbackInfo& info, size_t index, const char* name) : env_(info.Env()), value_(info[index]), name_(name) {}

  Input operator[](const char* field) const;
  Input operator[](uint32_t index) const;
  uint32_t length() const;  // of an array
  bool missing() const { return value_.IsUndefined() || value_.IsNull(); }

  double number() const;
  int64_t integer(int64_t low, int64_t high) const;
  bool flag() const;
  std::string text() const;
  // The value that belongs to a string in a list.
  template <class Word>
  Word word(std::initializer_list<std::pair<const char*, Word>> words) const {
    const std::string given = text();
    std::string known;
    for (auto& [name, word] : words) {
      if (given == name) return word;
      known += std::string(known.empty() ? "" : ", ") + name;
    }
    fail("must be one of " + known + ", got " + given);
  }
  LoopDType dtype() const;
  Shape integers() const;               // an array of integers
  std::vector<int32_t> int32s() const;  // an Int32Array
  std::vector<double> doubles() const;  // a Float64Array
  Napi::TypedArray typed_array() const;
  const void* bytes() const;     // of a typed array, which may be a view of a SharedArrayBuffer
  Sequences sequences() const;   // NativeSequences of src/native.ts
  InputVectors vectors() const;  // NativeVectors; empty if missing
  CancelFlag cancel() const;     // empty when missing

  template <class T>
  Held<T> object(Kind kind) const {
    Content& found = content(kind);
    return {std::static_pointer_cast<T>(found.object), found.executor};
  }

  [[noreturn]] void fail(const std::string& problem) const;

 private:
  Input(Napi::Env env, Napi::Value value, std::string name) : env_(env), value_(value), name_(std::move(name)) {}
  Content& content(Kind kind) const;
  Napi::Env env_;
  Napi::Value value_;
  std::string name_;
};

}  // namespace looplm::addon
