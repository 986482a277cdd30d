// Tensors between JavaScript and the engine.
#pragma once
#include "input.h"

namespace looplm::addon {

// A tensor whose elements may not be computed yet. The shape is known at once; use the rest only on the executor's thread.
struct TensorSlot {
  Shape shape;
  Tensor tensor;
  std::exception_ptr error;
  const Tensor& get() const {
    if (error) std::rethrow_exception(error);
    return tensor;
  }
};
using HeldTensor = Held<TensorSlot>;

// The first overload throws for a tensor of another device.
HeldTensor read_tensor(const Input& input, const std::shared_ptr<Executor>& executor);
HeldTensor read_tensor(const Input& input);
Napi::Value make_tensor(Napi::Env env, const std::shared_ptr<Executor>& executor, Tensor tensor);

}  // namespace looplm::addon
