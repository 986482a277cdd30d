#include "tensor_ops.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../numeric/half.h"

namespace looplm {

namespace {

[[noreturn]] void bad_shape(const char* operation, const std::string& message) {
  throw Error("INVALID_SHAPE", operation, message);
}
[[noreturn]] void bad_argument(const char* operation, const std::string& message) {
  throw Error("INVALID_ARGUMENT", operation, message);
}

int64_t product(const Shape& shape) { return std::accumulate(shape.begin(), shape.end(), int64_t(1), std::multiplies<>()); }

Shape dense_strides(const Shape& shape) {
  Shape strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
  return strides;
}

// Strides that read a tensor of `shape` as one of the broadcast shape `wide`: 0 for broadcast axes.
Shape broadcast_strides(const Shape& shape, const Shape& wide) {
  const Shape own = dense_strides(shape);
  Shape strides(wide.size(), 0);
  for (size_t i = 0; i < shape.size(); i++) {
    const size_t at = wide.size() - shape.size() + i;
    if (shape[i] == wide[at]) strides[at] = own[i];
  }
  return strides;
}

// The shape to which both broadcast, or nothing if they do not fit.
std::optional<Shape> common_shape(const Shape& a, const Shape& b) {
  Shape out(std::max(a.size(), b.size()));
  for (size_t i = 0; i < out.size(); i++) {  // from the last axis
    const int64_t x = i < a.size() ? a[a.size() - 1 - i] : 1, y = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (x != y && x != 1 && y != 1) return std::nullopt;
    out[out.size() - 1 - i] = std::max(x, y);
  }
  return out;
}

void check_pair(const Tensor& a, const Tensor& b, const char* operation) {
  if (a.dtype != b.dtype)
    bad_argument(operation,
                 std::string("the dtypes must be equal, got ") + loop_dtype_name(a.dtype) + " and " + loop_dtype_name(b.dtype));
  if (a.device != b.device)
    bad_argument(operation, "the devices must be the same, got \"" + a.device->name() + "\" and \"" + b.device->name() + "\"");
}

void check_float(const Tensor& x, const char* operation) {
  if (x.dtype == LOOP_I32) bad_argument(operation, "is not defined for int32; cast to a floating-point dtype");
}

size_t check_axis(const Tensor& x, int64_t axis, const char* operation) {
  const int64_t rank = int64_t(x.shape.size());
  if (axis >= -rank && axis < rank) return size_t(axis < 0 ? axis + rank : axis);
  bad_argument(operation, "axis " + std::to_string(axis) + " is not an axis of shape " + to_string(x.shape));
}

void copy_strided(const Tensor& x, size_t offset, const Shape& shape, const Shape& strides, const Tensor& out, size_t out_offset,
                  const Shape& out_strides, const char* operation) {
  const char* from = static_cast<const char*>(x.data()) + offset * loop_dtype_size(x.dtype);
  char* to = static_cast<char*>(out.data()) + out_offset * loop_dtype_size(out.dtype);
  x.device->run(&LoopBackend::copy_strided, operation, x.dtype, out.dtype, int32_t(shape.size()), shape.data(), from,
                strides.data(), to, out_strides.data());
}

}  // namespace

int64_t Tensor::size() const { return product(shape); }

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

int64_t checked_size(const Shape& shape, const char* operation) {
  if (shape.size() > LOOP_MAX_RANK)
    bad_shape(operation, "shape " + to_string(shape) + " has " + std::to_string(shape.size()) + " axes; at most " +
                             std::to_string(LOOP_MAX_RANK) + " are supported");
  int64_t size = 1;
  for (int64_t n : shape) {
    if (n < 1) bad_shape(operation, "every axis must be at least 1, got shape " + to_string(shape));
    if (n > (int64_t(1) << 48) / size) bad_shape(operation, "shape " + to_string(shape) + " has too many elements");
    size *= n;
  }
  return size;
}

void check_dtype(const Device& device, LoopDType dtype, const char* operation) {
  if (dtype == LOOP_I32 || device.supports(dtype)) return;
  const std::string known = device.supports(LOOP_F64) ? "float64 and int32" : "float32, bfloat16 and int32";
  throw Error("UNSUPPORTED", operation,
              std::string(loop_dtype_name(dtype)) + " is not available on device \"" + device.name() + "\", which has " + known);
}

Tensor allocate(const std::shared_ptr<Device>& device, LoopDType dtype, const Shape& shape, const char* operation) {
  check_dtype(*device, dtype, operation);
  const int64_t size = checked_size(shape, operation);
  return {device, dtype, shape, std::make_shared<Buffer>(device, size_t(size) * loop_dtype_size(dtype))};
}

Tensor from_host(const std::shared_ptr<Device>& device, LoopDType dtype, const Shape& shape, const void* elements, bool rounded) {
  check_dtype(*device, dtype, "tensor");
  const size_t count = size_t(checked_size(shape, "tensor"));
  auto buffer = std::make_shared<Buffer>(device, count * loop_dtype_size(dtype));
  if (rounded) {
    std::vector<uint16_t> bits(count);
    std::transform(static_cast<const float*>(elements), static_cast<const float*>(elements) + count, bits.begin(), float_to_bf16);
    buffer->upload(bits.data(), buffer->bytes());
  } else {
    buffer->upload(elements, buffer->bytes());
  }
  return {device, dtype, shape, buffer};
}

Tensor filled(const std::shared_ptr<Device>& device, LoopDType dtype, const Shape& shape, double value) {
  checked_size(shape, "full");
  if (dtype == LOOP_I32) {
    if (!(value == std::trunc(value) && value >= -0x1p31 && value < 0x1p31)) bad_argument("full", "the value is not an int32");
    const int32_t element = int32_t(value);
    return broadcast(from_host(device, dtype, {}, &element, false), shape, "full");
  }
  const float narrow = float(value);
  const bool wide = dtype == LOOP_F64;
  const Tensor one = from_host(device, dtype, {}, wide ? static_cast<const void*>(&value) : &narrow, dtype == LOOP_BF16);
  return broadcast(one, shape, "full");
}

Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  const char* const operation = "matmul";
  check_pair(a, b, operation);
  check_float(a, operation);
  const std::string shapes = to_string(a.shape) + (transpose_a ? " (transposed)" : "") + " and " + to_string(b.shape) +
                             (transpose_b ? " (transposed)" : "");
  if (a.shape.size() < 2 || b.shape.size() < 2) bad_shape(operation, "both tensors need at least two axes, got " + shapes);
  const size_t ra = a.shape.size(), rb = b.shape.size();
  const int64_t lda = a.shape[ra - 1], ldb = b.shape[rb - 1];
  const int64_t m = transpose_a ? lda : a.shape[ra - 2], k = transpose_a ? a.shape[ra - 2] : lda;
  const int64_t n = transpose_b ? b.shape[rb - 2] : ldb, kb = transpose_b ? ldb : b.shape[rb - 2];
  if (k != kb)
    bad_shape(operation, "the inner sizes " + std::to_string(k) + " and " + std::to_string(kb) + " of " + shapes + " differ");
  const Shape batch_a(a.shape.begin(), a.shape.end() - 2), batch_b(b.shape.begin(), b.shape.end() - 2);
  const auto batch = common_shape(batch_a, batch_b);
  if (!batch) bad_shape(operation, "the leading axes of " + shapes + " do not broadcast");

  Shape shape = *batch;
  shape.insert(shape.end(), {m, n});
  Tensor out = allocate(a.device, a.dtype, shape, operation);
  const Shape stride_a = broadcast_strides(batch_a, *batch), stride_b = broadcast_strides(batch_b, *batch);
  const int64_t count = product(*batch), bytes = int64_t(loop_dtype_size(a.dtype));
  for (int64_t i = 0; i < count; i++) {
    int64_t rest = i, at_a = 0, at_b = 0;
    for (size_t r = batch->size(); r-- > 0; rest /= (*batch)[r]) {
      at_a += rest % (*batch)[r] * stride_a[r];
      at_b += rest % (*batch)[r] * stride_b[r];
    }
    const void* from_a = static_cast<char*>(a.data()) + at_a * m * k * bytes;
    const void* from_b = static_cast<char*>(b.data()) + at_b * k * n * bytes;
    void* to = static_cast<char*>(out.data()) + i * m * n * bytes;
    a.device->run(&LoopBackend::gemm, operation, a.dtype, int(transpose_a), int(transpose_b), m, n, k, from_a, lda, from_b, ldb,
                  to, n, 0);
  }
  return out;
}

Tensor binary(LoopBinaryOp op, const Tensor& a, const Tensor& b) {
  const char* const operation = op == LOOP_ADD ? "add" : "mul";
  check_pair(a, b, operation);
  const auto shape = common_shape(a.shape, b.shape);
  if (!shape) bad_shape(operation, "shapes " + to_string(a.shape) + " and " + to_string(b.shape) + " do not broadcast");
  Tensor out = allocate(a.device, a.dtype, *shape, operation);
  const Shape stride_a = broadcast_strides(a.shape, *shape), stride_b = broadcast_strides(b.shape, *shape);
  a.device->run(&LoopBackend::binary, operation, a.dtype, op, int32_t(shape->size()), shape->data(), a.data(), stride_a.data(),
                b.data(), stride_b.data(), out.data());
  return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const char* const operation = "rmsNorm";
  check_pair(x, weight, operation);
  check_float(x, operation);
  if (!(eps >= 0) || std::isinf(eps)) bad_argument(operation, "eps must be a finite number of at least 0");
  if (x.shape.empty() || weight.shape != Shape{x.shape.back()})
    bad_shape(operation, "the weight must have the size of the tensor's last axis, got " + to_string(x.shape) + " and " +
                             to_string(weight.shape));
  Tensor out = allocate(x.device, x.dtype, x.shape, operation);
  const int64_t d = x.shape.back();
  const void* none = nullptr;
  void* unchanged = nullptr;
  x.device->run(&LoopBackend::residual_norm, operation, x.dtype, x.size() / d, d, eps, x.data(), none, none, weight.data(),
                unchanged, out.data());
  return out;
}

Tensor softmax(const Tensor& x, bool logarithm) {
  const char* const operation = logarithm ? "logSoftmax" : "softmax";
  check_float(x, operation);
  if (x.shape.empty()) bad_shape(operation, "the tensor needs at least one axis, got []");
  Tensor out = allocate(x.device, x.dtype, x.shape, operation);
  const int64_t n = x.shape.back();
  x.device->run(&LoopBackend::softmax, operation, x.dtype, x.size() / n, n, int(logarithm), x.data(), out.data());
  return out;
}

std::vector<int32_t> read_indices(const Tensor& x, int64_t limit, const char* operation) {
  if (x.dtype != LOOP_I32) bad_argument(operation, std::string("indices must be int32, got ") + loop_dtype_name(x.dtype));
  std::vector<int32_t> host(size_t(x.size()));
  x.buffer->download(host.data(), host.size() * sizeof(int32_t));
  for (size_t i = 0; i < host.size(); i++)
    if (host[i] < 0 || host[i] >= limit)
      bad_argument(operation, "index " + std::to_string(host[i]) + " (entry " + std::to_string(i) + ") is outside [0, " +
                                  std::to_string(limit) + ")");
  return host;
}

Tensor gather(const Tensor& x, const Tensor& indices) {
  const char* const operation = "gather";
  if (x.device != indices.device) bad_argument(operation, "the tensor and its indices must be on the same device");
  if (x.shape.empty()) bad_shape(operation, "the tensor needs at least one axis, got []");
  read_indices(indices, x.shape[0], operation);
  Shape shape = indices.shape;
  shape.insert(shape.end(), x.shape.begin() + 1, x.shape.end());
  Tensor out = allocate(x.device, x.dtype, shape, operation);
  x.device->run(&LoopBackend::gather_rows, operation, x.dtype, indices.size(), x.size() / x.shape[0],
                static_cast<const int32_t*>(indices.data()), x.data(), out.data());
  return out;
}

Tensor reduce(LoopReduceOp op, const Tensor& x, std::optional<int64_t> axis) {
  const char* const operation = op == LOOP_SUM ? "sum" : op == LOOP_MEAN ? "mean" : op == LOOP_MAX ? "max" : "argmax";
  if (op == LOOP_MEAN) check_float(x, operation);
  int64_t outer = 1, n = x.size(), inner = 1;
  Shape shape;
  if (axis) {
    const size_t at = check_axis(x, *axis, operation);
    shape = x.shape;
    n = shape[at];
    outer = product(Shape(shape.begin(), shape.begin() + int64_t(at)));
    inner = product(Shape(shape.begin() + int64_t(at) + 1, shape.end()));
    shape.erase(shape.begin() + int64_t(at));
  }
  Tensor out = allocate(x.device, op == LOOP_ARGMAX ? LOOP_I32 : x.dtype, shape, operation);
  x.device->run(&LoopBackend::reduce, operation, x.dtype, op, outer, n, inner, x.data(), out.data());
  return out;
}

Tensor reshape(const Tensor& x, Shape shape) {
  const char* const operation = "reshape";
  const std::string wanted = to_string(shape);
  const auto open = std::find(shape.begin(), shape.end(), -1);
  if (open != shape.end()) {
    *open = 1;
    const int64_t rest = checked_size(shape, operation);
    if (x.size() % rest != 0)
      bad_shape(operation, to_string(x.shape) + " has " + std::to_string(x.size()) + " elements, which do not fill " + wanted);
    *open = x.size() / rest;
  }
  if (checked_size(shape, operation) != x.size())
    bad_shape(operation, to_string(x.shape) + " has " + std::to_string(x.size()) + " elements, which do not fill " + wanted);
  return {x.device, x.dtype, shape, x.buffer};
}

Tensor slice(const Tensor& x, const Shape& begin, const Shape& end) {
  const char* const operation = "slice";
  const std::string range = to_string(begin) + " to " + to_string(end);
  if (begin.size() != x.shape.size() || end.size() != x.shape.size())
    bad_shape(operation, "begin and end need one entry per axis of " + to_string(x.shape) + ", got " + range);
  const Shape strides = dense_strides(x.shape);
  Shape shape(x.shape.size());
  int64_t offset = 0;
  for (size_t i = 0; i < shape.size(); i++) {
    if (begin[i] < 0 || end[i] > x.shape[i] || begin[i] >= end[i])
      bad_shape(operation, range + " is not a range inside " + to_string(x.shape) + " (axis " + std::to_string(i) + ")");
    shape[i] = end[i] - begin[i];
    offset += begin[i] * strides[i];
  }
  Tensor out = allocate(x.device, x.dtype, shape, operation);
  copy_strided(x, size_t(offset), shape, strides, out, 0, dense_strides(shape), operation);
  return out;
}

Tensor concat(const std::vector<Tensor>& tensors, int64_t axis) {
  const char* const operation = "concat";
  if (tensors.empty()) bad_argument(operation, "give at least one tensor");
  const Tensor& first = tensors[0];
  const size_t at = check_axis(first, axis, operation);
  Shape shape = first.shape;
  shape[at] = 0;
  for (const Tensor& x : tensors) {
    check_pair(first, x, operation);
    Shape same = x.shape;
    if (same.size() == shape.size()) same[at] = first.shape[at];
    if (same != first.shape)
      bad_shape(operation, to_string(first.shape) + " and " + to_string(x.shape) + " differ outside axis " + std::to_string(at));
    shape[at] += x.shape[at];
  }
  Tensor out = allocate(first.device, first.dtype, shape, operation);
  const Shape strides = dense_strides(shape);
  int64_t offset = 0;
  for (const Tensor& x : tensors) {
    copy_strided(x, 0, x.shape, dense_strides(x.shape), out, size_t(offset), strides, operation);
    offset += x.shape[at] * strides[at];
  }
  return out;
}

Tensor cast(const Tensor& x, LoopDType dtype) {
  Tensor out = allocate(x.device, dtype, x.shape, "cast");
  const Shape strides = dense_strides(x.shape);
  copy_strided(x, 0, x.shape, strides, out, 0, strides, "cast");
  return out;
}

Tensor transpose(const Tensor& x, const Shape& axes) {
  const char* const operation = "transpose";
  Shape sorted = axes, wanted(x.shape.size());
  std::sort(sorted.begin(), sorted.end());
  std::iota(wanted.begin(), wanted.end(), 0);
  if (sorted != wanted) bad_argument(operation, to_string(axes) + " does not name each axis of " + to_string(x.shape) + " once");
  const Shape from = dense_strides(x.shape);
  Shape shape, strides;
  for (int64_t axis : axes) {
    shape.push_back(x.shape[size_t(axis)]);
    strides.push_back(from[size_t(axis)]);
  }
  Tensor out = allocate(x.device, x.dtype, shape, operation);
  copy_strided(x, 0, shape, strides, out, 0, dense_strides(shape), operation);
  return out;
}

Tensor broadcast(const Tensor& x, const Shape& shape, const char* operation) {
  if (common_shape(x.shape, shape) != shape)
    bad_shape(operation, to_string(x.shape) + " does not broadcast to " + to_string(shape));
  Tensor out = allocate(x.device, x.dtype, shape, operation);
  copy_strided(x, 0, shape, broadcast_strides(x.shape, shape), out, 0, dense_strides(shape), operation);
  return out;
}

}  // namespace looplm
