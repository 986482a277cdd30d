// Linear layers with dense or quantized weights, an optional bias and low-rank adapters. Forward and backward are side by
// side.
//   y = x Wᵀ + b + s (x Aᵀ) Bᵀ
//   dx = dy W + du A, du = s dy B;   dW += dyᵀ x,  db += Σ dy,  dB += s dyᵀ (x Aᵀ),  dA += duᵀ x
#pragma once
#include <vector>

#include "device.h"

namespace looplm {

// A low-rank adapter (LoRA, Hu et al., arXiv 2106.09685) of the rows [first, first + out) of a matrix W. The effective rows
// are W + scale · B A.
struct LowRank {
  void *a, *b;  // [rank, in], [out, rank]
  int64_t first, out;
  size_t loop_bytes = 0;  // distance in bytes between the matrices of consecutive loops; 0: all loops share one pair
  LowRank of_loop(int32_t loop) const {
    const size_t bytes = size_t(loop) * loop_bytes;
    return {static_cast<char*>(a) + bytes, static_cast<char*>(b) + bytes, first, out};
  }
};
struct Linear {
  void* weight = nullptr;  // [out, in]; NULL if quantized, and among the gradients of a frozen base
  int64_t in = 0, out = 0;
  void* bias = nullptr;  // [out]; only the first `biased` elements are used, the rest are zeros; NULL: no bias
  int64_t biased = 0;
  std::vector<LowRank> adapters;
  const LoopQuantized* quantized = nullptr;
};

// Consecutive rows of a batch that are at the same loop.
struct LoopRows {
  int64_t first, count;
  int32_t loop;  // counted from 0
};

// Scratch memory, reused from call to call.
struct LinearMemory {
  Buffer rank, product, scaled, sum, ones;
};

// x · factor as act [elements], valid until the next call with `memory`. x: real [elements]; factor: one real on the device.
const void* scaled(const std::shared_ptr<Device>& device, LinearMemory& memory, LoopDType dt, const void* x, int64_t elements,
                   const void* factor);

class LinearLayers {
 public:
  // rows: N of every call. rank, scale: of the adapters (scale is one real on the device).
  LinearLayers(std::shared_ptr<Device> device, LoopDType dt, int64_t rows, int64_t rank, const void* scale, LinearMemory& memory)
      : device_(std::move(device)), dt_(dt), rows_(rows), rank_(rank), scale_(scale), memory_(memory), loops_{{0, rows, 0}} {}

  // Which loop's adapters the rows use, if loops have separate adapters. Initially loop 0.
  void at_loop(int32_t loop) { loops_ = {{0, rows_, loop}}; }
  void at_loops(const std::vector<LoopRows>& loops) { loops_ = loops; }

  void forward(const Linear& w, const void* x, void* y);                                         // act [N, in] -> [N, out]
  void backward_input(const Linear& w, const void* dy, void* dx);                                // act [N, out] -> [N, in]
  void backward_weight(const Linear& w, const Linear& gradient, const void* dy, const void* x);  // adds to the gradient, real

 private:
  void gemm(const char* name, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
            const void* b, int64_t ldb, void* c, int64_t ldc, int flags = 0) {
    device_->run(&LoopBackend::gemm, name, dt_, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, flags);
  }
  size_t act() const { return loop_dtype_size(dt_); }
  size_t real() const { return loop_dtype_size(loop_real(dt_)); }
  const void* row(const void* x, int64_t at, int64_t width) const {  // of act [N, width]
    return static_cast<const char*>(x) + size_t(at * width) * act();
  }
  const void* into_rank(const LowRank& part, const Linear& w, const void* x, const LoopRows& of);
  const void* rank_gradient(const LowRank& part, const Linear& w, const void* dy, const LoopRows& of);
  void* sum_of(const Linear& w, void* out, int64_t width);
  void round_sum(const void* sum, void* out, int64_t width);
  const void* ones();

  std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const int64_t rows_, rank_;
  const void* scale_;
  LinearMemory& memory_;
  std::vector<LoopRows> loops_;
};

}  // namespace looplm
