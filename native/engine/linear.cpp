#include "linear.h"

#include "../numeric/half.h"

namespace looplm {

const void* scaled(const std::shared_ptr<Device>& device, LinearMemory& memory, LoopDType dt, const void* x, int64_t elements,
                   const void* factor) {
  const int64_t one = 1, none = 0;
  const LoopDType real = loop_real(dt);
  memory.product.reserve(device, size_t(elements) * loop_dtype_size(real));
  void* product = memory.product.as<>();
  device->run(&LoopBackend::binary, "scale", real, LOOP_MULTIPLY, 1, &elements, x, &one, factor, &none, product);
  if (real == dt) return product;
  memory.scaled.reserve(device, size_t(elements) * loop_dtype_size(dt));
  void* out = memory.scaled.as<>();
  device->run(&LoopBackend::copy_strided, "cast", real, dt, 1, &elements, product, &one, out, &one);
  return out;
}

// s x Aᵀ, act [rows of one loop, rank]
const void* LinearLayers::into_rank(const LowRank& part, const Linear& w, const void* x, const LoopRows& of) {
  memory_.rank.reserve(device_, size_t(rows_ * rank_) * real());
  void* u = memory_.rank.as<>();
  gemm("adapter", 0, 1, of.count, rank_, w.in, row(x, of.first, w.in), w.in, part.a, w.in, u, rank_, LOOP_GEMM_REAL_OUT);
  return scaled(device_, memory_, dt_, u, of.count * rank_, scale_);
}
// s dy B, act [rows of one loop, rank]
const void* LinearLayers::rank_gradient(const LowRank& part, const Linear& w, const void* dy, const LoopRows& of) {
  memory_.rank.reserve(device_, size_t(rows_ * rank_) * real());
  void* du = memory_.rank.as<>();
  const void* own = static_cast<const char*>(row(dy, of.first, w.out)) + size_t(part.first) * act();
  gemm("adapter backward", 0, 0, of.count, rank_, part.out, own, w.out, part.b, rank_, du, rank_, LOOP_GEMM_REAL_OUT);
  return scaled(device_, memory_, dt_, du, of.count * rank_, scale_);
}

// With an adapter, base and adapter products are summed in real and rounded once.
void LinearLayers::forward(const Linear& w, const void* x, void* y) {
  const int64_t N = rows_, r = rank_;
  if (w.quantized) {
    device_->run(&LoopBackend::gemm_quantized, "linear", dt_, N, w.out, w.in, x, w.in, w.quantized, y, w.out, 0);
  } else {
    void* sum = sum_of(w, y, w.out);
    gemm("linear", 0, 1, N, w.out, w.in, x, w.in, w.weight, w.in, sum, w.out, sum == y ? 0 : LOOP_GEMM_REAL_OUT);
    for (const LowRank& adapter : w.adapters)
      for (const LoopRows& of : loops_) {
        const LowRank part = adapter.of_loop(of.loop);
        gemm("adapter", 0, 1, of.count, part.out, r, into_rank(part, w, x, of), r, part.b, r,
             static_cast<char*>(sum) + size_t(of.first * w.out + part.first) * real(), w.out, LOOP_GEMM_ACCUMULATE);
      }
    round_sum(sum, y, w.out);
  }
  if (!w.bias) return;
  const int64_t shape[] = {N, w.out}, of_rows[] = {w.out, 1}, same[] = {0, 1};
  device_->run(&LoopBackend::binary, "bias", dt_, LOOP_ADD, 2, shape, y, of_rows, w.bias, same, y);
}
void LinearLayers::backward_input(const Linear& w, const void* dy, void* dx) {
  const int64_t N = rows_, r = rank_;
  void* sum = sum_of(w, dx, w.in);
  gemm("linear backward", 0, 0, N, w.in, w.out, dy, w.out, w.weight, w.in, sum, w.in, sum == dx ? 0 : LOOP_GEMM_REAL_OUT);
  for (const LowRank& adapter : w.adapters)
    for (const LoopRows& of : loops_) {
      const LowRank part = adapter.of_loop(of.loop);
      gemm("adapter backward", 0, 0, of.count, w.in, r, rank_gradient(part, w, dy, of), r, part.a, w.in,
           static_cast<char*>(sum) + size_t(of.first * w.in) * real(), w.in, LOOP_GEMM_ACCUMULATE);
    }
  round_sum(sum, dx, w.in);
}
void LinearLayers::backward_weight(const Linear& w, const Linear& d, const void* dy, const void* x) {
  const int64_t N = rows_, r = rank_;
  if (d.weight) gemm("weight gradient", 1, 0, w.out, w.in, N, dy, w.out, x, w.in, d.weight, w.in, LOOP_GEMM_ACCUMULATE);
  if (d.bias) gemm("bias gradient", 0, 0, 1, d.biased, N, ones(), N, dy, w.out, d.bias, d.biased, LOOP_GEMM_ACCUMULATE);
  for (size_t i = 0; i < d.adapters.size(); i++)
    for (const LoopRows& of : loops_) {
      const LowRank part = w.adapters[i].of_loop(of.loop), gradient = d.adapters[i].of_loop(of.loop);
      const int64_t n = of.count;
      const void *own = static_cast<const char*>(row(dy, of.first, w.out)) + size_t(part.first) * act(),
                 *in = row(x, of.first, w.in);
      gemm("adapter gradient", 1, 0, part.out, r, n, own, w.out, into_rank(part, w, x, of), r, gradient.b, r,
           LOOP_GEMM_ACCUMULATE);
      gemm("adapter gradient", 1, 0, r, w.in, n, rank_gradient(part, w, dy, of), r, in, w.in, gradient.a, w.in,
           LOOP_GEMM_ACCUMULATE);
    }
}

// Where the sum for act [N, width] is computed: in `out` itself, or in real scratch memory that round_sum converts to `out`.
void* LinearLayers::sum_of(const Linear& w, void* out, int64_t width) {
  if (w.adapters.empty() || act() == real()) return out;
  memory_.sum.reserve(device_, size_t(rows_ * width) * real());
  return memory_.sum.as<>();
}
void LinearLayers::round_sum(const void* sum, void* out, int64_t width) {
  if (sum == out) return;
  const int64_t elements = rows_ * width, stride = 1;
  device_->run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, sum, &stride, out, &stride);
}

const void* LinearLayers::ones() {
  if (memory_.ones.bytes() < size_t(rows_) * act()) {
    memory_.ones.reserve(device_, size_t(rows_) * act());
    std::vector<uint8_t> raw(size_t(rows_) * act());
    for (int64_t i = 0; i < rows_; i++) {
      if (dt_ == LOOP_F64) reinterpret_cast<double*>(raw.data())[i] = 1;
      else if (dt_ == LOOP_F32) reinterpret_cast<float*>(raw.data())[i] = 1;
      else reinterpret_cast<uint16_t*>(raw.data())[i] = float_to_bf16(1);
    }
    memory_.ones.upload(raw.data(), raw.size());
  }
  return memory_.ones.as<>();
}

}  // namespace looplm
