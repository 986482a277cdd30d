// out = gate(g)·u, gate(g) = g σ(g) or σ(g) (math.md §1). gate_up [n, 2f]: g then u. A thread handles W columns of a row.
#include "context.h"
#include "elementwise.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

template <class T, int W, LoopGate Gate>
__global__ void swiglu_kernel(int64_t count, int64_t f, const T* gate_up, T* out) {
  const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W;
  if (at >= count) return;
  const int64_t in = at + at / f * f;
  float g[W], u[W];
  read<W>(gate_up + in, g);
  read<W>(gate_up + in + f, u);
#pragma unroll
  for (int k = 0; k < W; k++) g[k] = Gate == LOOP_SILU ? swiglu_of(g[k], u[k]) : sigmoid(g[k]) * u[k];
  write<W>(out + at, g);
}

// ∂g = ∂out u σ(g) (1 + g (1 - σ(g))) or ∂out u σ(g) (1 - σ(g)),   ∂u = ∂out gate(g). dgate_up may alias gate_up.
template <class T, int W, LoopGate Gate>
__global__ void swiglu_backward_kernel(int64_t count, int64_t f, const T* gate_up, const T* dout, T* dgate_up, T* out) {
  const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W;
  if (at >= count) return;
  const int64_t in = at + at / f * f;
  float g[W], u[W], d[W], product[W];
  read<W>(gate_up + in, g);
  read<W>(gate_up + in + f, u);
  read<W>(dout + at, d);
#pragma unroll
  for (int k = 0; k < W; k++) {
    const float s = sigmoid(g[k]), value = Gate == LOOP_SILU ? g[k] * s : s;
    product[k] = value * u[k];
    g[k] = d[k] * u[k] * s * (Gate == LOOP_SILU ? 1 + g[k] * (1 - s) : 1 - s);
    u[k] = d[k] * value;
  }
  write<W>(dgate_up + in, g);
  write<W>(dgate_up + in + f, u);
  write<W>(out + at, product);
}

template <LoopGate Gate>
int forward(void* ctx, LoopDType dt, int64_t n, int64_t f, const void* gate_up, void* out) {
  return with_dtype(ctx, "swiglu", dt, [&]<class T>(Context& c, T) {
    const auto go = [&](auto kernel, int width) {
      return check(c,
                   launch(kernel, dim3(unsigned(ceil_div(n * f, 256 * width))), dim3(256), 0, c.stream, n * f, f,
                          static_cast<const T*>(gate_up), static_cast<T*>(out)),
                   "swiglu");
    };
    return vectorizable(f, wide<T>, {gate_up, out}) ? go(swiglu_kernel<T, wide<T>, Gate>, wide<T>)
                                                    : go(swiglu_kernel<T, 1, Gate>, 1);
  });
}

template <LoopGate Gate>
int backward(void* ctx, LoopDType dt, int64_t n, int64_t f, const void* gate_up, const void* dout, void* dgate_up, void* out) {
  return with_dtype(ctx, "swiglu_backward", dt, [&]<class T>(Context& c, T) {
    const auto go = [&](auto kernel, int width) {
      return check(
          c,
          launch(kernel, dim3(unsigned(ceil_div(n * f, 256 * width))), dim3(256), 0, c.stream, n * f, f,
                 static_cast<const T*>(gate_up), static_cast<const T*>(dout), static_cast<T*>(dgate_up), static_cast<T*>(out)),
          "swiglu_backward");
    };
    return vectorizable(f, wide<T>, {gate_up, dout, dgate_up, out}) ? go(swiglu_backward_kernel<T, wide<T>, Gate>, wide<T>)
                                                                    : go(swiglu_backward_kernel<T, 1, Gate>, 1);
  });
}

int swiglu(void* ctx, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, void* out) {
  return (gate == LOOP_SILU ? forward<LOOP_SILU> : forward<LOOP_SIGMOID>)(ctx, dt, n, f, gate_up, out);
}
int swiglu_backward(void* ctx, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, const void* dout,
                    void* dgate_up, void* out) {
  return (gate == LOOP_SILU ? backward<LOOP_SILU> : backward<LOOP_SIGMOID>)(ctx, dt, n, f, gate_up, dout, dgate_up, out);
}

}  // namespace

void add_swiglu(LoopBackend& table) {
  table.swiglu = guarded<swiglu>;
  table.swiglu_backward = guarded<swiglu_backward>;
}

}  // namespace looplm::cuda
