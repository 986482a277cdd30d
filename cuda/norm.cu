// RMS(v; w) = v · rsqrt(mean v² + eps) · w with the residual connection around it (math.md §1). One block per row. A thread
// handles the same columns in every pass, so it can read what it wrote in an earlier pass. A row is read from memory once;
// later passes read it from the L1 cache.
#include "columns.h"
#include "context.h"
#include "norm_row.h"

namespace looplm::cuda {
namespace {

// h_out = h + RMS(branch; w_branch), or h + branch;  x = RMS(h_out; w_next). Without a branch, x = RMS(h; w_next). x is
// computed from h_out as it is stored.
template <class T, int W>
__global__ void residual_norm_kernel(int64_t d, float eps, const T* h, const T* branch, const T* w_branch, const T* w_next,
                                     T* h_out, T* x) {
  SHARED_ARRAY(float, scratch, 32);
  const int64_t row = int64_t(blockIdx.x) * d;
  if (branch)  // the branch is read first; prefetch h meanwhile
    for (int j = int(threadIdx.x) * W; j < d; j += int(blockDim.x) * W) prefetch(h + row + j);
  const auto of_h = [&](int j, float(&v)[W]) { read<W>(h + row + j, v); };
  const auto of_out = [&](int j, float(&v)[W]) { read<W>(h_out + row + j, v); };
  const auto to_out = [&](int j, const float(&v)[W]) { write<W>(h_out + row + j, v); };
  const auto to_x = [&](int j, const float(&v)[W]) { write<W>(x + row + j, v); };
  if (branch) {
    const float square = w_branch ? add_normed<W>(d, eps, branch + row, w_branch, scratch, of_h, to_out)
                                  : add_plain<W>(d, branch + row, of_h, to_out);
    if (w_next) put_normed<W>(d, eps, square, w_next, scratch, of_out, to_x);
  } else if (w_next) {
    put_normed<W>(d, eps, sum_of_squares<W>(d, of_h), w_next, scratch, of_h, to_x);
  }
}

int residual_norm(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h, const void* branch,
                  const void* w_branch, const void* w_next, void* h_out, void* x) {
  return with_dtype(ctx, "residual_norm", dt, [&]<class T>(Context& c, T) {
    const auto go = [&](auto kernel, int width) {
      return check(c,
                   launch(kernel, dim3(unsigned(n)), dim3(unsigned(row_threads(d, width))), 0, c.stream, d, float(eps),
                          static_cast<const T*>(h), static_cast<const T*>(branch), static_cast<const T*>(w_branch),
                          static_cast<const T*>(w_next), static_cast<T*>(h_out), static_cast<T*>(x)),
                   "residual_norm");
    };
    return vectorizable(d, wide<T>, {h, branch, w_branch, w_next, h_out, x}) ? go(residual_norm_kernel<T, wide<T>>, wide<T>)
                                                                             : go(residual_norm_kernel<T, 1>, 1);
  });
}

// y = v s w, s = rsqrt(mean v² + eps):  ∂v = s w ∂y - v s³ mean(∂y w v),  ∂w += ∂y v s. A block handles every gridDim.x-th
// row. It sums ∂w of both weights in shared memory (column_floats each), and finally writes them to partial[block][next,
// branch][d]. While it works on a row, it prefetches the next one into the L2 cache, so it never waits for memory within a
// row.
template <class T, int W>
__global__ void __launch_bounds__(256)
    norm_backward_kernel(int64_t n, int64_t d, float eps, const T* h_out, const T* branch, const T* w_branch, const T* w_next,
                         const T* dx, float* dh, T* dbranch, float* partial) {
  SHARED_ARRAY(float, scratch, 64);
  const int begin = int(threadIdx.x) * W, step = int(blockDim.x) * W, threads = int(blockDim.x);
  const size_t columns = size_t((d + step - 1) / step) * step;
  const Shared<float> dw_next = dynamic_shared<float>(0, columns), dw_branch = dynamic_shared<float>(columns * 4, columns);
  float v[W], w[W], dy[W], g[W];
  for (int j = begin, own = int(threadIdx.x); j < d; j += step, own += step)
#pragma unroll
    for (int k = 0; k < W; k++) dw_next[own + k * threads] = 0, dw_branch[own + k * threads] = 0;
  const auto fetch = [&](int64_t row) {
    for (int j = begin; row < n && j < d; j += step) {
      const int64_t at = row * d + j;
      if (dx) prefetch(h_out + at), prefetch(dx + at);
      if (branch) prefetch(branch + at);
      prefetch(dh + at);
    }
  };
  fetch(blockIdx.x);
  for (int64_t row = blockIdx.x; row < n; row += gridDim.x) {
    const int64_t at = row * d;
    fetch(row + gridDim.x);
    if (dx) {
      float square = 0, product = 0;
      for (int j = begin; j < d; j += step) {
        read<W>(h_out + at + j, v);
        read<W>(dx + at + j, dy);
        read<W>(w_next + j, w);
#pragma unroll
        for (int k = 0; k < W; k++) square += v[k] * v[k], product += dy[k] * w[k] * v[k];
      }
      block_sums(square, product, scratch);
      const float s = 1 / sqrtf(square / float(d) + eps), pull = s * s * s * (product / float(d));
      for (int j = begin, own = int(threadIdx.x); j < d; j += step, own += step) {
        read<W>(h_out + at + j, v);
        read<W>(dx + at + j, dy);
        read<W>(w_next + j, w);
        read<W>(dh + at + j, g);
#pragma unroll
        for (int k = 0; k < W; k++) {
          dw_next[own + k * threads] = float(dw_next[own + k * threads]) + dy[k] * v[k] * s;
          g[k] += s * w[k] * dy[k] - v[k] * pull;
        }
        write<W>(dh + at + j, g);
      }
    }
    if (branch && !w_branch) {
      for (int j = begin; j < d; j += step) {
        read<W>(dh + at + j, g);
        write<W>(dbranch + at + j, g);
      }
    } else if (branch) {
      float square = 0, product = 0;
      for (int j = begin; j < d; j += step) {
        read<W>(branch + at + j, v);
        read<W>(dh + at + j, g);
        read<W>(w_branch + j, w);
#pragma unroll
        for (int k = 0; k < W; k++) square += v[k] * v[k], product += g[k] * w[k] * v[k];
      }
      block_sums(square, product, scratch);
      const float s = 1 / sqrtf(square / float(d) + eps), pull = s * s * s * (product / float(d));
      for (int j = begin, own = int(threadIdx.x); j < d; j += step, own += step) {
        read<W>(branch + at + j, v);
        read<W>(dh + at + j, g);
        read<W>(w_branch + j, w);
#pragma unroll
        for (int k = 0; k < W; k++) {
          dw_branch[own + k * threads] = float(dw_branch[own + k * threads]) + g[k] * v[k] * s;
          v[k] = s * w[k] * g[k] - v[k] * pull;
        }
        write<W>(dbranch + at + j, v);
      }
    }
  }
  for (int j = begin, own = int(threadIdx.x); j < d; j += step, own += step)
#pragma unroll
    for (int k = 0; k < W; k++) {
      partial[2 * d * blockIdx.x + j + k] = dw_next[own + k * threads];
      partial[2 * d * blockIdx.x + d + j + k] = dw_branch[own + k * threads];
    }
}

int residual_norm_backward(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h_out, const void* branch,
                           const void* w_branch, const void* w_next, const void* dx, void* dh, void* dbranch, void* dw_branch,
                           void* dw_next) {
  return with_dtype(ctx, "residual_norm_backward", dt, [&]<class T>(Context& c, T) {
    int blocks = 0;
    float* partial = nullptr;
    const auto go = [&](auto kernel, int width) {
      const int threads = row_threads(d, width);
      const size_t shared = column_floats(d, threads, width) * 8;
      blocks = int(row_blocks(c.device, kernel, n, threads, shared, column_blocks));
      partial = static_cast<float*>(scratch(c, size_t(blocks) * size_t(d) * 8));
      if (!partial) return int(LOOP_OUT_OF_MEMORY);
      return check(c,
                   launch(kernel, dim3(unsigned(blocks)), dim3(unsigned(threads)), shared, c.stream, n, d, float(eps),
                          static_cast<const T*>(h_out), static_cast<const T*>(branch), static_cast<const T*>(w_branch),
                          static_cast<const T*>(w_next), static_cast<const T*>(dx), static_cast<float*>(dh),
                          static_cast<T*>(dbranch), partial),
                   "residual_norm_backward");
    };
    int status = vectorizable(d, wide<T>, {h_out, branch, w_branch, w_next, dx, dh, dbranch})
                     ? go(norm_backward_kernel<T, wide<T>>, wide<T>)
                     : go(norm_backward_kernel<T, 1>, 1);
    if (!status && dx && dw_next) status = add_partials(c, blocks, 2 * d, d, partial, dw_next);
    if (!status && branch && w_branch && dw_branch) status = add_partials(c, blocks, 2 * d, d, partial + d, dw_branch);
    return status;
  });
}

}  // namespace

void add_norm(LoopBackend& table) {
  table.residual_norm = guarded<residual_norm>;
  table.residual_norm_backward = guarded<residual_norm_backward>;
}

}  // namespace looplm::cuda
