// Rows selected by an index: the embedding and its gradient, gather and scatter. Also the comparison of rows.
#include <stdio.h>

#include "rows.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

// dst[i] = src[index[i]], rows of `bytes` bytes
int copy_rows(Context& ctx, int64_t n, int64_t bytes, const int32_t* index, const void* src, void* dst) {
  const auto* from = static_cast<const char*>(src);
  auto* to = static_cast<char*>(dst);
  for_rows(ctx, n, bytes / 4, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) memcpy(to + i * bytes, from + int64_t(index[i]) * bytes, size_t(bytes));
  });
  return 0;
}

inline void add_row(int64_t d, const float* src, float* dst) {
  for_vectors(
      d, LOOPLM_VECTORS(j, part, chain) { store(dst + j, load(dst + j, part) + load(src + j, part), part); });
}

typedef float half_floats __attribute__((vector_size(W * 2)));  // W / 2 floats

template <class E>
inline doubles load_doubles(const E* p) {
  float part[W / 2];
  for (int i = 0; i < W / 2; i++) part[i] = to_float(p[i]);
  half_floats x;
  memcpy(&x, part, sizeof x);
  return __builtin_convertvector(x, doubles);
}
inline double sum_of(doubles x) {
  double total = 0;
  for (int i = 0; i < W / 2; i++) total += x[i];
  return total;
}

// out [4]: |x - y|², |x|², x·y, |y|²
template <class E>
void compare_row(int64_t d, const E* x, const E* y, double* out) {
  doubles sums[4] = {};
  int64_t j = 0;
  for (; j + W / 2 <= d; j += W / 2) {
    const doubles a = load_doubles(x + j), b = load_doubles(y + j);
    sums[0] += (a - b) * (a - b), sums[1] += a * a, sums[2] += a * b, sums[3] += b * b;
  }
  for (int k = 0; k < 4; k++) out[k] = sum_of(sums[k]);
  for (; j < d; j++) {
    const double a = to_float(x[j]), b = to_float(y[j]);
    out[0] += (a - b) * (a - b), out[1] += a * a, out[2] += a * b, out[3] += b * b;
  }
}

}  // namespace

int embed(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* ids, const void* table, void* out) {
  return gather_rows(ctx, dt, n, d, ids, table, out);
}

// dtable[ids[i]] += dout[i]. A task handles some columns of all rows, so the rows of one id are always added in the order of
// i.
int embed_backward(void* context, LoopDType, int64_t n, int64_t d, int64_t vocabulary, const int32_t* ids, const void* dout_,
                   void* dtable_) {
  auto& ctx = *static_cast<Context*>(context);
  for (int64_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= vocabulary) {
      snprintf(ctx.error, sizeof ctx.error, "embed_backward: id %d outside a vocabulary of %lld", ids[i],
               static_cast<long long>(vocabulary));
      return 1;
    }
  const auto* dout = static_cast<const float*>(dout_);
  auto* dtable = static_cast<float*>(dtable_);
  // at most 16 tasks, each of whole cache lines
  const int64_t sixteenth = (d + 15) / 16, columns = (sixteenth + 31) / 32 * 32;
  ctx.pool.run((d + columns - 1) / columns, [=](int64_t task, int) {
    const int64_t begin = task * columns, width = begin + columns < d ? columns : d - begin;
    for (int64_t i = 0; i < n; i++) add_row(width, dout + i * d + begin, dtable + ids[i] * d + begin);
  });
  return 0;
}

int gather_rows(void* context, LoopDType type, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst) {
  return copy_rows(*static_cast<Context*>(context), n, d * int64_t(loop_dtype_size(type)), index, src, dst);
}

int scatter_add_rows(void* context, LoopDType, int64_t n, int64_t d, const int32_t* index, const void* src_, void* dst_) {
  const auto* src = static_cast<const float*>(src_);
  auto* dst = static_cast<float*>(dst_);
  for_rows(*static_cast<Context*>(context), n, d, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) add_row(d, src + i * d, dst + index[i] * d);
  });
  return 0;
}

int compare_rows(void* context, LoopDType dt, int64_t n, int64_t d, const void* x, const void* y, double* host_out) {
  const auto compare = [=, &ctx = *static_cast<Context*>(context)]<class E>(const E*) {
    for_rows(ctx, n, d, [=](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        compare_row(d, static_cast<const E*>(x) + i * d, static_cast<const E*>(y) + i * d, host_out + 4 * i);
    });
  };
  dt == LOOP_BF16 ? compare(static_cast<const bf16*>(x)) : compare(static_cast<const float*>(x));
  return 0;
}

}  // namespace looplm::cpu::LOOPLM_ISA
