#include "input.h"

#include <cmath>
#include <limits>

namespace looplm::addon {

void Input::fail(const std::string& problem) const { throw Error("INVALID_ARGUMENT", "looplm", name_ + " " + problem); }

Input Input::operator[](const char* field) const {
  if (!value_.IsObject()) fail("must be an object");
  return {env_, value_.As<Napi::Object>().Get(field), name_ + "." + field};
}

Input Input::operator[](uint32_t index) const {
  if (!value_.IsArray()) fail("must be an array");
  return {env_, value_.As<Napi::Array>().Get(index), name_ + "[" + std::to_string(index) + "]"};
}

uint32_t Input::length() const {
  if (!value_.IsArray()) fail("must be an array");
  return value_.As<Napi::Array>().Length();
}

double Input::number() const {
  if (!value_.IsNumber()) fail("must be a number");
  return value_.As<Napi::Number>().DoubleValue();
}

int64_t Input::integer(int64_t low, int64_t high) const {
  const double value = number();
  if (!(value >= double(low) && value <= double(high)) || value != std::trunc(value))
    fail("must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
  return int64_t(value);
}

bool Input::flag() const {
  if (!value_.IsBoolean()) fail("must be true or false");
  return value_.As<Napi::Boolean>().Value();
}

std::string Input::text() const {
  if (!value_.IsString()) fail("must be a string");
  return value_.As<Napi::String>().Utf8Value();
}

LoopDType Input::dtype() const {
  return word<LoopDType>({{"float32", LOOP_F32}, {"bfloat16", LOOP_BF16}, {"float64", LOOP_F64}, {"int32", LOOP_I32}});
}

Shape Input::integers() const {
  constexpr int64_t EXACT = int64_t(1) << 53;
  Shape out;
  const uint32_t count = length();
  for (uint32_t i = 0; i < count; i++) out.push_back((*this)[i].integer(-EXACT, EXACT));
  return out;
}

Napi::TypedArray Input::typed_array() const {
  if (!value_.IsTypedArray()) fail("must be a typed array");
  return value_.As<Napi::TypedArray>();
}

// Uses the C API, because node-addon-api accepts only an ArrayBuffer, not a SharedArrayBuffer.
const void* Input::bytes() const {
  void* data = nullptr;
  if (napi_get_typedarray_info(env_, value_, nullptr, nullptr, &data, nullptr, nullptr) != napi_ok) fail("cannot be read");
  return data;
}

std::vector<int32_t> Input::int32s() const {
  if (typed_array().TypedArrayType() != napi_int32_array) fail("must be an Int32Array");
  const auto* first = static_cast<const int32_t*>(bytes());
  return {first, first + value_.As<Napi::TypedArray>().ElementLength()};
}

std::vector<double> Input::doubles() const {
  if (typed_array().TypedArrayType() != napi_float64_array) fail("must be a Float64Array");
  const auto* first = static_cast<const double*>(bytes());
  return {first, first + value_.As<Napi::TypedArray>().ElementLength()};
}

Sequences Input::sequences() const {
  Sequences out;
  out.tokens = (*this)["tokens"].int32s();
  out.offsets.push_back(0);
  for (int32_t length : (*this)["lengths"].int32s()) {
    if (length < 1) (*this)["lengths"].fail("must be at least 1 each");
    out.offsets.push_back(out.offsets.back() + length);
  }
  if (out.offsets.back() != int64_t(out.tokens.size())) (*this)["lengths"].fail("do not add up to the number of tokens");
  out.prompt_lengths = (*this)["promptLengths"].int32s();
  if (!out.prompt_lengths.empty() && out.prompt_lengths.size() != out.count())
    (*this)["promptLengths"].fail("must have one entry per sequence");
  for (size_t i = 0; i < out.prompt_lengths.size(); i++)
    if (out.prompt_lengths[i] < 1 || out.prompt_lengths[i] >= out.length(i))
      (*this)["promptLengths"].fail("must leave at least one token of each sequence");
  if (const Input exits = (*this)["exits"]; !exits.missing()) out.exits = exits.int32s();
  if (const Input states = (*this)["states"]; !states.missing()) out.states = states.doubles();
  out.vectors = (*this)["vectors"].vectors();
  if (const Input seed = (*this)["stateSeed"]; !seed.missing()) out.state_seed = uint64_t(seed.integer(0, int64_t(1) << 53));
  if (const Input zeros = (*this)["zeroStates"]; !zeros.missing()) out.zero_states = zeros.flag();
  return out;
}

InputVectors Input::vectors() const {
  InputVectors out;
  if (missing()) return out;
  for (const int32_t token : (*this)["tokens"].int32s()) out.tokens.push_back(token);
  out.values = (*this)["values"].doubles();
  return out;
}

CancelFlag Input::cancel() const {
  if (missing()) return nullptr;
  return std::static_pointer_cast<std::atomic<bool>>(content(Kind::cancel).object);
}

Content& Input::content(Kind kind) const {
  Content* found = Handle::content(env_, value_);
  if (!found || found->kind != kind) fail(std::string("must be a ") + kind_name(kind));
  if (!found->object) throw Error("DISPOSED", "looplm", std::string("the ") + kind_name(kind) + " was disposed");
  return *found;
}

}  // namespace looplm::addon
