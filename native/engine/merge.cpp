#include "merge.h"

#include <algorithm>

namespace looplm {

std::unique_ptr<Model> merged(const Model& model) {
  model.refuse_quantized("merge");
  const std::shared_ptr<Device>& device = model.device;
  const LoopDType dt = model.dt, real = model.real();
  auto copy = std::make_unique<Model>(device, dt, model.config);
  copy->copy_base_from(model);
  const AdapterOptions* adapter = model.adapter();
  if (!adapter) return copy;
  if (adapter->shift_rank > 0)
    throw Error(
        "UNSUPPORTED", "merge",
        "the adapter lets the MLP see the previous token (shiftRank), which no matrix of the model can do: keep the adapter "
        "separate, with saveAdapter and loadAdapter");
  if (adapter->per_loop)
    throw Error("UNSUPPORTED", "merge",
                "every loop has its own adapter (perLoop), but the loops share the matrices to which they would be added: "
                "keep the adapter separate, with saveAdapter and loadAdapter");
  const int64_t r = adapter->rank, stride = 1;
  LinearMemory memory;
  for (const Parameter& p : model.parameters()) {
    if (!is_layer_matrix(p.role)) continue;
    const Linear& own = model.weights().layers[size_t(p.index)].*matrix_of(p.role);
    for (const LowRank& part : own.adapters) {
      if (part.first != p.first_row) continue;
      const int64_t count = int64_t(p.count), out = p.shape[0], in = p.shape[1];
      void* target = copy->writable_data(p);
      // W and s B A are summed in real and rounded once.
      Buffer sum(device, size_t(std::max(count, out * r)) * loop_dtype_size(real));
      auto cast = [&](LoopDType from, LoopDType to, const void* source, void* result, int64_t n) {
        device->run(&LoopBackend::copy_strided, "merge", from, to, 1, &n, source, &stride, result, &stride);
      };
      cast(dt, real, part.b, sum.as<>(), out * r);
      const void* b = scaled(device, memory, dt, sum.as<>(), out * r, model.weights().scale);
      cast(dt, real, target, sum.as<>(), count);
      device->run(&LoopBackend::gemm, "merge", dt, 0, 0, out, in, r, b, r, part.a, in, sum.as<>(), in, int(LOOP_GEMM_ACCUMULATE));
      cast(real, dt, sum.as<>(), target, count);
    }
  }
  return copy;
}

}  // namespace looplm
