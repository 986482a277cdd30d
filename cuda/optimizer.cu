// AdamW (math.md §6), the gradient norm for clipping, and the moving average of a teacher (§5).
#include <cmath>

#include "context.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

constexpr int square_blocks = 512;  // the same on every chip, so that the sum has the same bits everywhere

// Sums in double, because the square of a float32 above 1.8e19 overflows.
template <int W>
__global__ void sum_squares_kernel(int64_t count, const float* x, double* partial) {
  SHARED_ARRAY(double, scratch, 8);
  double sum = 0;
  for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W; i < count; i += int64_t(gridDim.x) * blockDim.x * W) {
    float v[W];
    read<W>(x + i, v);
#pragma unroll
    for (int k = 0; k < W; k++) sum += double(v[k]) * double(v[k]);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
__global__ void sum_kernel(int count, const double* partial, double* out) {
  SHARED_ARRAY(double, scratch, 8);
  double sum = 0;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) sum += partial[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *out = sum;
}

// The sums of all arrays are computed first; then one wait brings them to the host.
int sum_squares(void* ctx, LoopDType dt, int64_t arrays, const int64_t* host_counts, const void* const* host_x,
                double* host_out) {
  return with_dtype(ctx, "sum_squares", dt, [&](Context& c, auto) {
    if (arrays == 0) return 0;
    auto* sums =
        // [arrays], then the partial sums of one array
        static_cast<double*>(scratch(c, (size_t(arrays) + square_blocks) * 8));
    if (!sums) return int(LOOP_OUT_OF_MEMORY);
    double* const partial = sums + arrays;
    for (int64_t a = 0; a < arrays; a++) {
      const auto* x = static_cast<const float*>(host_x[a]);
      const int64_t count = host_counts[a];
      const auto go = [&](auto kernel, int width) {
        const int blocks = int(std::min<int64_t>(square_blocks, ceil_div(count, 256 * width)));
        if (int status =
                check(c, launch(kernel, dim3(unsigned(blocks)), dim3(256), 0, c.stream, count, x, partial), "sum_squares"))
          return status;
        return check(c,
                     launch(sum_kernel, dim3(1), dim3(256), 0, c.stream, blocks, static_cast<const double*>(partial), sums + a),
                     "sum_squares");
      };
      if (int status = vectorizable(count, 4, {x}) ? go(sum_squares_kernel<4>, 4) : go(sum_squares_kernel<1>, 1)) return status;
    }
    return read_back(c, host_out, sums, size_t(arrays) * 8);
  });
}

// m = β1 m + (1-β1) g,  v = β2 v + (1-β2) g²,  p -= lr (m̂ / (√v̂ + ε) + wd p). T: dtype of the parameter. If there is a
// master, it is updated, and the parameter is its rounded copy.
struct AdamW {
  int64_t count;
  void* parameter;
  float* master;
  const float* gradient;
  float *first, *second;
  float learning_rate, beta1, rest1, beta2, rest2, epsilon, weight_decay, gradient_scale;  // rest: 1 - β, rounded once
  float correction1, correction2;                                                          // 1 / (1 - β^step)
};

template <class T, int W>
__global__ void adamw_kernel(AdamW a) {
  const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W;
  if (at >= a.count) return;
  auto* parameter = static_cast<T*>(a.parameter) + at;
  float p[W], g[W], m[W], v[W];
  if (a.master) read<W>(a.master + at, p);
  else read<W>(parameter, p);
  read<W>(a.gradient + at, g);
  read<W>(a.first + at, m);
  read<W>(a.second + at, v);
#pragma unroll
  for (int k = 0; k < W; k++) {
    const float x = g[k] * a.gradient_scale;
    m[k] = a.beta1 * m[k] + a.rest1 * x;
    v[k] = a.beta2 * v[k] + a.rest2 * x * x;
    p[k] -= a.learning_rate * (m[k] * a.correction1 / (sqrtf(v[k] * a.correction2) + a.epsilon) + a.weight_decay * p[k]);
  }
  write<W>(a.first + at, m);
  write<W>(a.second + at, v);
  if (a.master) write<W>(a.master + at, p);
  write<W>(parameter, p);
}

int adamw(void* ctx, LoopDType dt, const LoopAdamW* o) {
  return with_dtype(ctx, "adamw", dt, [&]<class T>(Context& c, T) {
    const AdamW a{o->count,
                  o->parameter,
                  static_cast<float*>(o->master),
                  static_cast<const float*>(o->gradient),
                  static_cast<float*>(o->first_moment),
                  static_cast<float*>(o->second_moment),
                  float(o->learning_rate),
                  float(o->beta1),
                  float(1 - o->beta1),
                  float(o->beta2),
                  float(1 - o->beta2),
                  float(o->epsilon),
                  float(o->weight_decay),
                  float(o->gradient_scale),
                  float(1 / (1 - std::pow(o->beta1, double(o->step)))),
                  float(1 / (1 - std::pow(o->beta2, double(o->step))))};
    const auto go = [&](auto kernel, int width) {
      return check(c, launch(kernel, dim3(unsigned(ceil_div(a.count, 256 * width))), dim3(256), 0, c.stream, a), "adamw");
    };
    return vectorizable(a.count, 4, {a.parameter, a.master, a.gradient, a.first, a.second}) ? go(adamw_kernel<T, 4>, 4)
                                                                                            : go(adamw_kernel<T, 1>, 1);
  });
}

// parameter = average = average + weight (x - average).
template <class T, int W>
__global__ void moving_average_kernel(int64_t count, float weight, const T* x, float* average, T* parameter) {
  const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W;
  if (at >= count) return;
  float now[W], mean[W];
  read<W>(x + at, now);
  read<W>(average + at, mean);
#pragma unroll
  for (int k = 0; k < W; k++) mean[k] += weight * (now[k] - mean[k]);
  write<W>(average + at, mean);
  if (parameter) write<W>(parameter + at, mean);
}

int moving_average(void* ctx, LoopDType dt, int64_t count, double weight, const void* x, void* average, void* parameter) {
  return with_dtype(ctx, "moving_average", dt, [&]<class T>(Context& c, T) {
    const auto go = [&](auto kernel, int width) {
      return check(c,
                   launch(kernel, dim3(unsigned(ceil_div(count, 256 * width))), dim3(256), 0, c.stream, count, float(weight),
                          static_cast<const T*>(x), static_cast<float*>(average), static_cast<T*>(parameter)),
                   "moving_average");
    };
    return vectorizable(count, 4, {x, average, parameter}) ? go(moving_average_kernel<T, 4>, 4)
                                                           : go(moving_average_kernel<T, 1>, 1);
  });
}

}  // namespace

void add_optimizer(LoopBackend& table) {
  table.sum_squares = guarded<sum_squares>;
  table.adamw = guarded<adamw>;
  table.moving_average = guarded<moving_average>;
}

}  // namespace looplm::cuda
