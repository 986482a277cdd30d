// Results for JavaScript: converted on the executor's thread, made into typed arrays on the JavaScript thread.
#pragma once
#include <napi.h>

#include <cstring>
#include <string>
#include <vector>

#include "../backend.h"

namespace looplm::addon {

template <class Array, class Element>
Array typed_array(Napi::Env env, const Element* elements, size_t count) {
  Array array = Array::New(env, count);
  if (count > 0) std::memcpy(array.Data(), elements, count * sizeof(Element));
  return array;
}

// Real numbers: a Float64Array for float64 models, else a Float32Array.
class Reals {
 public:
  Reals() = default;
  Reals(std::vector<double> values, LoopDType dtype) : wide_(dtype == LOOP_F64) {
    if (wide_) doubles_ = std::move(values);
    else floats_.assign(values.begin(), values.end());
  }
  size_t size() const { return wide_ ? doubles_.size() : floats_.size(); }
  Napi::Value array(Napi::Env env) const { return array(env, 0, size()); }
  Napi::Value array(Napi::Env env, size_t begin, size_t count) const {
    if (wide_) return typed_array<Napi::Float64Array>(env, doubles_.data() + begin, count);
    return typed_array<Napi::Float32Array>(env, floats_.data() + begin, count);
  }

 private:
  bool wide_ = false;
  std::vector<double> doubles_;
  std::vector<float> floats_;
};

// A JavaScript array of numbers.
template <class Values>
Napi::Array number_array(Napi::Env env, const Values& values) {
  Napi::Array array = Napi::Array::New(env, values.size());
  for (uint32_t i = 0; i < values.size(); i++) array.Set(i, Napi::Number::New(env, double(values[i])));
  return array;
}

}  // namespace looplm::addon
