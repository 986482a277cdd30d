// Immutable dense tensors on a device and the operations on them. Every function checks dtypes and shapes and throws
// INVALID_SHAPE or INVALID_ARGUMENT with the shapes at fault; a result is a new tensor, except a reshape, which shares its
// elements.
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
// The number of elements. Refuses more than LOOP_MAX_RANK axes, axes below 1 and sizes that overflow.
int64_t checked_size(const Shape& shape, const char* operation);
// Refuses dtypes that the device does not compute with; int32 is everywhere.
void check_dtype(const Device& device, LoopDType dtype, const char* operation);

Tensor allocate(const std::shared_ptr<Device>& device, LoopDType dtype, const Shape& shape, const char* operation);
// `elements`: of the tensor's own dtype, or float32 for a bfloat16 tensor (`rounded`).
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

// Stretched to a shape that it broadcasts to, as numpy does.
Tensor broadcast(const Tensor& x, const Shape& shape, const char* operation);
// Host copy of an int32 tensor whose entries must lie in [0, limit).
std::vector<int32_t> read_indices(const Tensor& x, int64_t limit, const char* operation);

}  // namespace looplm
