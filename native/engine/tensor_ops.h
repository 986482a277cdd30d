// Immutable dense tensors on a device, and operations on them. Every function checks dtypes and shapes. It throws
// INVALID_SHAPE or INVALID_ARGUMENT with the wrong shapes. The result is always a new tensor, but reshape shares the elements
// of its input.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device.h"

namespace looplm {

using Shape = std::vector<int64_t>;

struct Tensor {
  std::shared_ptr<Device> device;
  LoopDType dtype = LOOP_F32;
  Shape shape;
  std::shared_ptr<Buffer> buffer;

  void* data() const { return buffer->as<>(); }
  int64_t size() const;
};

std::string to_string(const Shape& shape);  // "[2, 3]"
// The number of elements. Throws for more than LOOP_MAX_RANK axes, axes below 1 and sizes that overflow.
int64_t checked_size(const Shape& shape, const char* operation);
// Throws for dtypes that the device does not compute with; every device has int32.
void check_dtype(const Device& device, LoopDType dtype, const char* operation);

Tensor allocate(const std::shared_ptr<Device>& device, LoopDType dtype, const Shape& shape, const char* operation);
// elements: of the tensor's dtype, or with `rounded` float32 values for a bfloat16 tensor.
Tensor from_host(const std::shared_ptr<Device>& device, LoopDType dtype, const Shape& shape, const void* elements, bool rounded);
Tensor filled(const std::shared_ptr<Device>& device, LoopDType dtype, const Shape& shape, double value);

Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b);
Tensor binary(LoopBinaryOp op, const Tensor& a, const Tensor& b);
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);
Tensor softmax(const Tensor& x, bool logarithm);
Tensor gather(const Tensor& x, const Tensor& indices);
Tensor reduce(LoopReduceOp op, const Tensor& x, std::optional<int64_t> axis);
Tensor reshape(const Tensor& x, Shape shape);
Tensor slice(const Tensor& x, const Shape& begin, const Shape& end);
Tensor concat(const std::vector<Tensor>& tensors, int64_t axis);
Tensor cast(const Tensor& x, LoopDType dtype);
Tensor transpose(const Tensor& x, const Shape& axes);

// Broadcasts to a shape, like numpy.
Tensor broadcast(const Tensor& x, const Shape& shape, const char* operation);
// Host copy of an int32 tensor. Throws unless all entries are in [0, limit).
std::vector<int32_t> read_indices(const Tensor& x, int64_t limit, const char* operation);

}  // namespace looplm
