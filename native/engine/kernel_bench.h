// One kernel of the backend table on random inputs, and the work that it must do, for `npm run bench`.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "device.h"

namespace looplm {

struct KernelShape {  // a kernel ignores the sizes that it does not use
  int64_t rows = 4096, hidden = 512, intermediate = 1408, vocabulary = 8192, length = 512;
  int32_t heads = 8, kv_heads = 8;
};

struct KernelCase {
  double flops = 0;  // floating-point operations of one run that every implementation must do
  double bytes = 0;  // bytes that it must move: every input read once, every output written once
  std::function<void()> run;
  std::vector<Buffer> buffers;
};

std::vector<std::string> kernel_names();
// Throws NOT_FOUND for an unknown name. device NULL: only computes the work for a GPU; there is nothing to run.
KernelCase make_kernel_case(const std::shared_ptr<Device>& device, LoopDType dt, const std::string& name,
                            const KernelShape& shape);

}  // namespace looplm
