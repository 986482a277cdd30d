#include "tensor_functions.h"

#include <cstring>

#include "functions.h"
#include "output.h"

namespace looplm::addon {

HeldTensor read_tensor(const Input& input) { return input.object<TensorSlot>(Kind::tensor); }

HeldTensor read_tensor(const Input& input, const std::shared_ptr<Executor>& executor) {
  HeldTensor tensor = read_tensor(input);
  if (tensor.executor != executor) input.fail("must be on the device of the other tensors");
  return tensor;
}

Napi::Value make_tensor(Napi::Env env, const std::shared_ptr<Executor>& executor, Tensor tensor) {
  auto slot = std::make_shared<TensorSlot>();
  slot->shape = tensor.shape;
  slot->tensor = std::move(tensor);
  return make_handle(env, {Kind::tensor, executor, slot});
}

namespace {

// Returns a promise of the tensor that `compute` returns on the executor's thread.
template <class Compute>
Napi::Value tensor_promise(const Napi::CallbackInfo& info, const std::shared_ptr<Executor>& executor, Compute compute) {
  return executor->submit(info.Env(), nullptr, [executor, compute = std::move(compute)]() -> Executor::Finish {
    return [executor, tensor = compute()](Napi::Env env) { return make_tensor(env, executor, tensor); };
  });
}

// Returns a tensor at once; `compute` makes its elements later on the executor's thread.
template <class Compute>
Napi::Value deferred(const Napi::CallbackInfo& info, const std::shared_ptr<Executor>& executor, const Shape& shape,
                     Compute compute) {
  auto slot = std::make_shared<TensorSlot>();
  slot->shape = shape;
  const Napi::Value handle = make_handle(info.Env(), {Kind::tensor, executor, slot});
  executor->post([slot, compute = std::move(compute)] {
    try {
      slot->tensor = compute();
    } catch (...) {
      slot->error = std::current_exception();
    }
  });
  return handle;
}

Napi::Value tensor_create(const Napi::CallbackInfo& info) {
  const auto context = Input(info, 0, "context").object<Executor>(Kind::context);
  const LoopDType dtype = Input(info, 1, "dtype").dtype();
  const Shape shape = Input(info, 2, "shape").integers();
  const Input data(info, 3, "data");
  check_dtype(*context->device(), dtype, "tensor");
  const int64_t size = checked_size(shape, "tensor");
  const Napi::TypedArray array = data.typed_array();
  if (int64_t(array.ElementLength()) != size)
    throw Error("INVALID_SHAPE", "tensor",
                "shape " + to_string(shape) + " has " + std::to_string(size) + " elements, the data " +
                    std::to_string(array.ElementLength()));
  const napi_typedarray_type type = array.TypedArrayType();
  const bool rounded = dtype == LOOP_BF16 && type == napi_float32_array;
  const napi_typedarray_type wanted = dtype == LOOP_F32   ? napi_float32_array
                                      : dtype == LOOP_F64 ? napi_float64_array
                                      : dtype == LOOP_I32 ? napi_int32_array
                                                          : napi_uint16_array;
  if (type != wanted && !rounded) data.fail(std::string("does not hold ") + loop_dtype_name(dtype));
  const auto* bytes = static_cast<const uint8_t*>(data.bytes());
  auto elements = std::make_shared<std::vector<uint8_t>>(bytes, bytes + array.ByteLength());
  return deferred(info, context.object, shape, [device = context->device(), dtype, shape, elements, rounded] {
    return from_host(device, dtype, shape, elements->data(), rounded);
  });
}

Napi::Value fill(const Napi::CallbackInfo& info) {
  const auto context = Input(info, 0, "context").object<Executor>(Kind::context);
  const LoopDType dtype = Input(info, 1, "dtype").dtype();
  const Shape shape = Input(info, 2, "shape").integers();
  const double value = Input(info, 3, "value").number();
  check_dtype(*context->device(), dtype, "tensor");
  checked_size(shape, "tensor");
  return deferred(info, context.object, shape,
                  [device = context->device(), dtype, shape, value] { return filled(device, dtype, shape, value); });
}

Napi::Value shape_of(const Napi::CallbackInfo& info) {
  return number_array(info.Env(), read_tensor(Input(info, 0, "tensor"))->shape);
}

template <class Array, class Element>
Executor::Finish download(const Tensor& x) {
  auto elements = std::make_shared<std::vector<Element>>(size_t(x.size()));
  x.buffer->download(elements->data(), elements->size() * sizeof(Element));
  return [elements](Napi::Env env) { return typed_array<Array>(env, elements->data(), elements->size()); };
}

Napi::Value data_of(const Napi::CallbackInfo& info) {
  const HeldTensor x = read_tensor(Input(info, 0, "tensor"));
  return x.executor->submit(info.Env(), nullptr, [slot = x.object]() -> Executor::Finish {
    const Tensor& tensor = slot->get();
    switch (tensor.dtype) {
      case LOOP_F64:
        return download<Napi::Float64Array, double>(tensor);
      case LOOP_I32:
        return download<Napi::Int32Array, int32_t>(tensor);
      case LOOP_BF16:
        return download<Napi::Uint16Array, uint16_t>(tensor);
      default:
        return download<Napi::Float32Array, float>(tensor);
    }
  });
}

Napi::Value matmul_of(const Napi::CallbackInfo& info) {
  const HeldTensor a = read_tensor(Input(info, 0, "a")), b = read_tensor(Input(info, 1, "b"), a.executor);
  const bool transpose_a = Input(info, 2, "transposeA").flag(), transpose_b = Input(info, 3, "transposeB").flag();
  return tensor_promise(info, a.executor, [a = a.object, b = b.object, transpose_a, transpose_b] {
    return matmul(a->get(), b->get(), transpose_a, transpose_b);
  });
}

Napi::Value binary_of(const Napi::CallbackInfo& info) {
  const auto op = Input(info, 0, "op").word<LoopBinaryOp>({{"add", LOOP_ADD}, {"mul", LOOP_MULTIPLY}});
  const HeldTensor a = read_tensor(Input(info, 1, "a")), b = read_tensor(Input(info, 2, "b"), a.executor);
  return tensor_promise(info, a.executor, [op, a = a.object, b = b.object] { return binary(op, a->get(), b->get()); });
}

Napi::Value rms_norm_of(const Napi::CallbackInfo& info) {
  const HeldTensor x = read_tensor(Input(info, 0, "x")), weight = read_tensor(Input(info, 1, "weight"), x.executor);
  const double eps = Input(info, 2, "eps").number();
  return tensor_promise(info, x.executor,
                        [x = x.object, weight = weight.object, eps] { return rms_norm(x->get(), weight->get(), eps); });
}

Napi::Value softmax_of(const Napi::CallbackInfo& info) {
  const HeldTensor x = read_tensor(Input(info, 0, "x"));
  const bool logarithm = Input(info, 1, "logarithm").flag();
  return tensor_promise(info, x.executor, [x = x.object, logarithm] { return softmax(x->get(), logarithm); });
}

Napi::Value gather_of(const Napi::CallbackInfo& info) {
  const HeldTensor x = read_tensor(Input(info, 0, "x")), indices = read_tensor(Input(info, 1, "indices"), x.executor);
  return tensor_promise(info, x.executor, [x = x.object, indices = indices.object] { return gather(x->get(), indices->get()); });
}

Napi::Value reduce_of(const Napi::CallbackInfo& info) {
  const auto op = Input(info, 0, "op")
                      .word<LoopReduceOp>({{"sum", LOOP_SUM}, {"mean", LOOP_MEAN}, {"max", LOOP_MAX}, {"argmax", LOOP_ARGMAX}});
  const HeldTensor x = read_tensor(Input(info, 1, "x"));
  const Input axis_input(info, 2, "axis");
  std::optional<int64_t> axis;
  if (!axis_input.missing()) axis = axis_input.integer(-LOOP_MAX_RANK, LOOP_MAX_RANK);
  return tensor_promise(info, x.executor, [op, x = x.object, axis] { return reduce(op, x->get(), axis); });
}

Napi::Value reshape_of(const Napi::CallbackInfo& info) {
  const HeldTensor x = read_tensor(Input(info, 0, "x"));
  const Shape shape = Input(info, 1, "shape").integers();
  return tensor_promise(info, x.executor, [x = x.object, shape] { return reshape(x->get(), shape); });
}

Napi::Value slice_of(const Napi::CallbackInfo& info) {
  const HeldTensor x = read_tensor(Input(info, 0, "x"));
  const Shape begin = Input(info, 1, "begin").integers(), end = Input(info, 2, "end").integers();
  return tensor_promise(info, x.executor, [x = x.object, begin, end] { return slice(x->get(), begin, end); });
}

Napi::Value concat_of(const Napi::CallbackInfo& info) {
  const Input list(info, 0, "tensors");
  const int64_t axis = Input(info, 1, "axis").integer(-LOOP_MAX_RANK, LOOP_MAX_RANK);
  if (list.length() == 0) list.fail("must hold at least one tensor");
  std::vector<std::shared_ptr<TensorSlot>> slots;
  const std::shared_ptr<Executor> executor = read_tensor(list[uint32_t(0)]).executor;
  for (uint32_t i = 0; i < list.length(); i++) slots.push_back(read_tensor(list[i], executor).object);
  return tensor_promise(info, executor, [slots, axis] {
    std::vector<Tensor> tensors;
    for (auto& slot : slots) tensors.push_back(slot->get());
    return concat(tensors, axis);
  });
}

Napi::Value cast_of(const Napi::CallbackInfo& info) {
  const HeldTensor x = read_tensor(Input(info, 0, "x"));
  const LoopDType dtype = Input(info, 1, "dtype").dtype();
  return tensor_promise(info, x.executor, [x = x.object, dtype] { return cast(x->get(), dtype); });
}

Napi::Value transpose_of(const Napi::CallbackInfo& info) {
  const HeldTensor x = read_tensor(Input(info, 0, "x"));
  const Shape axes = Input(info, 1, "axes").integers();
  return tensor_promise(info, x.executor, [x = x.object, axes] { return transpose(x->get(), axes); });
}

}  // namespace

void add_tensor_functions(Napi::Env env, Napi::Object exports) {
  add<tensor_create>(env, exports, "tensorCreate");
  add<fill>(env, exports, "tensorFill");
  add<shape_of>(env, exports, "tensorShape");
  add<data_of>(env, exports, "tensorData");
  add<matmul_of>(env, exports, "tensorMatmul");
  add<binary_of>(env, exports, "tensorBinary");
  add<rms_norm_of>(env, exports, "tensorRmsNorm");
  add<softmax_of>(env, exports, "tensorSoftmax");
  add<gather_of>(env, exports, "tensorGather");
  add<reduce_of>(env, exports, "tensorReduce");
  add<reshape_of>(env, exports, "tensorReshape");
  add<slice_of>(env, exports, "tensorSlice");
  add<concat_of>(env, exports, "tensorConcat");
  add<cast_of>(env, exports, "tensorCast");
  add<transpose_of>(env, exports, "tensorTranspose");
}

}  // namespace looplm::addon
