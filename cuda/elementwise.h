// Elementwise formulas that several kernels compute. The rounding of every operation is explicit (simt.h), so all kernels get
// the same bits.
#pragma once
#include "simt.h"

namespace looplm::cuda {

// Rotates a pair of a head by the angle of its position (math.md §1).
__device__ __forceinline__ void rotate(float& u, float& v, float cosine, float sine) {
  const float a = u, b = v;
  u = fmaf(a, cosine, -__fmul_rn(b, sine));
  v = fmaf(b, cosine, __fmul_rn(a, sine));
}

__device__ __forceinline__ float sigmoid(float x) { return 1 / __fadd_rn(1, expf(-x)); }
// silu(g)·u
__device__ __forceinline__ float swiglu_of(float g, float u) { return g * (sigmoid(g) * u); }

}  // namespace looplm::cuda
