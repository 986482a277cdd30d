// The exit gate, and the exit distribution over the loops (math.md §1).
#include "columns.h"
#include "context.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

// a[i] = w·h[i] + b. One warp per row, 8 rows per block.
template <class T, int W>
__global__ void gate_kernel(int64_t n, int64_t d, const T* h, const T* w, const T* b, float* a) {
  const int64_t row = int64_t(blockIdx.x) * 8 + warp_id();
  if (row >= n) return;
  const float sum = warp_dot<W>(d, w, [&](int64_t j, float(&x)[W]) { read<W>(h + row * d + j, x); });
  if (lane_id() == 0) a[row] = sum + to_float(b[0]);
}

int gate(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* h, const void* w, const void* b, void* a) {
  return with_dtype(ctx, "gate", dt, [&]<class T>(Context& c, T) {
    const auto go = [&](auto kernel) {
      return check(c,
                   launch(kernel, dim3(unsigned(ceil_div(n, 8))), dim3(256), 0, c.stream, n, d, static_cast<const T*>(h),
                          static_cast<const T*>(w), static_cast<const T*>(b), static_cast<float*>(a)),
                   "gate");
    };
    return vectorizable(d, wide<T>, {h, w}) ? go(gate_kernel<T, wide<T>>) : go(gate_kernel<T, 1>);
  });
}

// dh[i] += da[i] w,  dw += Σ da[i] h[i],  db += Σ da[i]. A block handles every gridDim.x-th row; its sums are in
// partial[block][d + 1].
template <class T, int W>
__global__ void gate_backward_kernel(int64_t n, int64_t d, const float* da, const T* h, const T* w, float* dh, float* partial) {
  const int begin = int(threadIdx.x) * W, step = int(blockDim.x) * W, threads = int(blockDim.x);
  const Shared<float> dw = dynamic_shared<float>(0, size_t((d + step - 1) / step) * step);
  float db = 0, x[W], g[W];
  for (int j = begin, own = int(threadIdx.x); j < d; j += step, own += step)
#pragma unroll
    for (int k = 0; k < W; k++) dw[own + k * threads] = 0;
  // Rows without a gradient (prompts, tokens without a loss) are not read.
  const auto fetch = [&](int64_t row) {  // prefetch the row into the L2 cache
    const float a = row < n ? da[row] : 0;
    for (int j = begin; a != 0 && j < d; j += step) prefetch(h + row * d + j), prefetch(dh + row * d + j);
    return a;
  };
  float next = fetch(blockIdx.x);
  for (int64_t row = blockIdx.x; row < n; row += gridDim.x) {
    const float a = next;
    next = fetch(row + gridDim.x);
    if (a == 0) continue;
    db += a;
    for (int j = begin, own = int(threadIdx.x); j < d; j += step, own += step) {
      read<W>(h + row * d + j, x);
      read<W>(dh + row * d + j, g);
#pragma unroll
      for (int k = 0; k < W; k++) dw[own + k * threads] = float(dw[own + k * threads]) + a * x[k];
      read<W>(w + j, x);
#pragma unroll
      for (int k = 0; k < W; k++) g[k] += a * x[k];
      write<W>(dh + row * d + j, g);
    }
  }
  float* out = partial + (d + 1) * blockIdx.x;
  for (int j = begin, own = int(threadIdx.x); j < d; j += step, own += step)
#pragma unroll
    for (int k = 0; k < W; k++) out[j + k] = dw[own + k * threads];
  if (threadIdx.x == 0) out[d] = db;
}

int gate_backward(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* da, const void* h, const void* w, void* dh, void* dw,
                  void* db) {
  return with_dtype(ctx, "gate_backward", dt, [&]<class T>(Context& c, T) {
    int blocks = 0;
    float* partial = nullptr;
    const auto go = [&](auto kernel, int width) {
      const int threads = row_threads(d, width);
      const size_t shared = column_floats(d, threads, width) * 4;
      blocks = int(row_blocks(c.device, kernel, n, threads, shared, column_blocks));
      partial = static_cast<float*>(scratch(c, size_t(blocks) * size_t(d + 1) * 4));
      if (!partial) return int(LOOP_OUT_OF_MEMORY);
      return check(
          c,
          launch(kernel, dim3(unsigned(blocks)), dim3(unsigned(threads)), shared, c.stream, n, d, static_cast<const float*>(da),
                 static_cast<const T*>(h), static_cast<const T*>(w), static_cast<float*>(dh), partial),
          "gate_backward");
    };
    int status =
        vectorizable(d, wide<T>, {h, w, dh}) ? go(gate_backward_kernel<T, wide<T>>, wide<T>) : go(gate_backward_kernel<T, 1>, 1);
    if (!status) status = add_partials(c, blocks, d + 1, d, partial, dw);
    return status ? status : add_partials(c, blocks, d + 1, 1, partial + d, db);
  });
}

__device__ __forceinline__ float log_sigmoid(float x) { return fminf(x, 0.0f) - log1pf(expf(-fabsf(x))); }

// log p_t = logσ(a_t) + Σ_{s<t} logσ(-a_s). The last loop takes the remaining probability. One thread per position, [loops,
// n].
__global__ void exit_pdf_kernel(int64_t loops, int64_t n, const float* gates, float* log_pdf, float* pdf) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float stay = 0;
  for (int64_t t = 0; t < loops; t++) {
    const float a = gates[t * n + i], log_p = t < loops - 1 ? log_sigmoid(a) + stay : stay;
    if (log_pdf) log_pdf[t * n + i] = log_p;
    if (pdf) pdf[t * n + i] = expf(log_p);
    stay += log_sigmoid(-a);
  }
}

// ∂L/∂a_j = f_j (1 - λ_j) - λ_j Σ_{t>j} f_t,  f_t = p_t ∂L/∂p_t,  ∂L/∂a_T = 0. The first loop stores f in dgates.
__global__ void exit_pdf_backward_kernel(int64_t loops, int64_t n, const float* gates, const float* dpdf, float* dgates) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float stay = 1;
  for (int64_t t = 0; t < loops; t++) {
    const float leave = 1 / (1 + expf(-gates[t * n + i])), remain = 1 / (1 + expf(gates[t * n + i]));
    dgates[t * n + i] = dpdf[t * n + i] * (t < loops - 1 ? leave * stay : stay);
    stay *= remain;
  }
  float after = 0;
  for (int64_t t = loops - 1; t >= 0; t--) {
    const float flow = dgates[t * n + i], leave = 1 / (1 + expf(-gates[t * n + i])), remain = 1 / (1 + expf(gates[t * n + i]));
    dgates[t * n + i] = t < loops - 1 ? flow * remain - leave * after : 0;
    after += flow;
  }
}

int exit_pdf(void* ctx, LoopDType dt, int64_t loops, int64_t n, const void* gates, void* log_pdf, void* pdf) {
  return with_dtype(ctx, "exit_pdf", dt, [&](Context& c, auto) {
    return check(c,
                 launch(exit_pdf_kernel, dim3(unsigned(ceil_div(n, 256))), dim3(256), 0, c.stream, loops, n,
                        static_cast<const float*>(gates), static_cast<float*>(log_pdf), static_cast<float*>(pdf)),
                 "exit_pdf");
  });
}

int exit_pdf_backward(void* ctx, LoopDType dt, int64_t loops, int64_t n, const void* gates, const void* dpdf, void* dgates) {
  return with_dtype(ctx, "exit_pdf_backward", dt, [&](Context& c, auto) {
    return check(c,
                 launch(exit_pdf_backward_kernel, dim3(unsigned(ceil_div(n, 256))), dim3(256), 0, c.stream, loops, n,
                        static_cast<const float*>(gates), static_cast<const float*>(dpdf), static_cast<float*>(dgates)),
                 "exit_pdf_backward");
  });
}

}  // namespace

void add_exit(LoopBackend& table) {
  table.gate = guarded<gate>;
  table.gate_backward = guarded<gate_backward>;
  table.exit_pdf = guarded<exit_pdf>;
  table.exit_pdf_backward = guarded<exit_pdf_backward>;
}

}  // namespace looplm::cuda
