// Tensor operations, on elements of any dtype.
#include <array>

#include "context.h"
#include "element.h"
#include "scores.h"

namespace looplm::reference {
namespace {

// Calls visit(i, offset_a, offset_b) for every index of a shape in row-major order.
template <class Visit>
void for_each_index(int32_t rank, const int64_t* shape, const int64_t* a_strides, const int64_t* b_strides, Visit visit) {
  int64_t count = 1;
  for (int32_t r = 0; r < rank; ++r) count *= shape[r];
  for (int64_t i = 0; i < count; ++i) {
    int64_t rest = i, a = 0, b = 0;
    for (int32_t r = rank - 1; r >= 0; --r) {
      a += rest % shape[r] * a_strides[r];
      b += rest % shape[r] * b_strides[r];
      rest /= shape[r];
    }
    visit(i, a, b);
  }
}

int check_rank(void* ctx, const char* operation, int32_t rank) {
  if (rank >= 0 && rank <= LOOP_MAX_RANK) return 0;
  return fail(ctx,
              std::string(operation) + ": rank " + std::to_string(rank) + " is outside 0 .. " + std::to_string(LOOP_MAX_RANK));
}

int binary(void* ctx, LoopDType type, LoopBinaryOp op, int32_t rank, const int64_t* shape, const void* a,
           const int64_t* a_strides, const void* b, const int64_t* b_strides, void* out) {
  if (int status = check_rank(ctx, "binary", rank)) return status;
  for_each_index(rank, shape, a_strides, b_strides, [&](int64_t i, int64_t ia, int64_t ib) {
    const double x = load(type, a, ia), y = load(type, b, ib);
    if (type == LOOP_I32)  // int32 addition and multiplication wrap around
      static_cast<int32_t*>(out)[i] = int32_t(op == LOOP_ADD ? int64_t(x) + int64_t(y) : int64_t(x) * int64_t(y));
    else store(type, out, i, op == LOOP_ADD ? x + y : x * y);
  });
  return 0;
}

int copy_strided(void* ctx, LoopDType from, LoopDType to, int32_t rank, const int64_t* shape, const void* src,
                 const int64_t* src_strides, void* dst, const int64_t* dst_strides) {
  if (int status = check_rank(ctx, "copy_strided", rank)) return status;
  for_each_index(rank, shape, src_strides, dst_strides, [&](int64_t, int64_t from_offset, int64_t to_offset) {
    store(to, dst, to_offset, load(from, src, from_offset));
  });
  return 0;
}

int softmax(void* ctx, LoopDType type, int64_t rows, int64_t n, int logarithm, const void* x, void* out) {
  if (type == LOOP_I32) return fail(ctx, "softmax: not defined for int32; convert to float32 first");
  for (int64_t i = 0; i < rows && n > 0; ++i) {
    std::vector<double> row;
    for (int64_t j = 0; j < n; ++j) row.push_back(load(type, x, i * n + j));
    const double lse = log_sum_exp(row);
    for (int64_t j = 0; j < n; ++j)
      store(type, out, i * n + j, logarithm ? row[size_t(j)] - lse : std::exp(row[size_t(j)] - lse));
  }
  return 0;
}

// x [outer, n, inner] → out [outer, inner]
int reduce(void* ctx, LoopDType type, LoopReduceOp op, int64_t outer, int64_t n, int64_t inner, const void* x, void* out) {
  if (type == LOOP_I32 && op == LOOP_MEAN)
    return fail(ctx, "reduce: the mean is not defined for int32; convert to float32 first");
  if (n == 0 && (op == LOOP_MAX || op == LOOP_ARGMAX)) return fail(ctx, "reduce: the largest of no elements is not defined");
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < inner; ++i) {
      const auto element = [&](int64_t j) { return load(type, x, (o * n + j) * inner + i); };
      double sum = 0;
      int64_t best = 0;
      for (int64_t j = 0; j < n; ++j) {
        sum += element(j);
        if (element(j) > element(best) || (std::isnan(element(j)) && !std::isnan(element(best)))) best = j;
      }
      const int64_t at = o * inner + i;
      switch (op) {
        case LOOP_SUM:
          store(type, out, at, sum);
          break;
        case LOOP_MEAN:
          store(type, out, at, sum / double(n));
          break;
        case LOOP_MAX:
          store(type, out, at, element(best));
          break;
        case LOOP_ARGMAX:
          static_cast<int32_t*>(out)[at] = int32_t(best);
          break;
      }
    }
  return 0;
}

}  // namespace

void add_tensor(LoopBackend& table) {
  table.binary = binary;
  table.copy_strided = copy_strided;
  table.softmax = softmax;
  table.reduce = reduce;
}

}  // namespace looplm::reference
