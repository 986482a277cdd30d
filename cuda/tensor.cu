// Tensor operations. Arithmetic supports float32, bfloat16 and int32. copy_strided converts between all dtypes, so that
// checkpoints of any dtype can be read.
#include <type_traits>

#include "context.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

struct f16 {
  uint16_t bits;
};

__device__ float half_value(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
  if (magnitude < 0x400u) {  // zero or subnormal: a multiple of 2^-24
    const float tiny = float(magnitude) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  const uint32_t wide_bits = magnitude >= 0x7C00u ? 0x7F800000u | (magnitude & 0x3FFu) << 13 : (magnitude << 13) + (112u << 23);
  return __uint_as_float(sign | wide_bits);
}
__device__ uint32_t half_bits(float x) {  // to nearest, ties to even
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // 65520 and above
  if (magnitude < 0x38800000u)                          // below 2^-14: next to 1/2, the last bit is worth 2^-24
    return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3F000000u);
  return sign | (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
}

// Converts an element to a number of type N (float or double), and back.
template <class N, class E>
__device__ __forceinline__ N number(E x) {
  if constexpr (std::is_same_v<E, bf16>) return N(to_float(x));
  else if constexpr (std::is_same_v<E, f16>) return N(half_value(x.bits));
  else return N(x);
}
template <class E, class N>
__device__ __forceinline__ E element(N x) {
  if constexpr (std::is_same_v<E, bf16>) return to_bf16(float(x));
  else if constexpr (std::is_same_v<E, f16>) return {uint16_t(half_bits(float(x)))};
  else if constexpr (std::is_same_v<E, int32_t>)  // truncates and saturates; NaN becomes 0
    return x != x ? 0 : x >= N(0x1p31) ? INT32_MAX : x <= N(-0x1p31) ? INT32_MIN : int32_t(x);
  else return E(x);
}

// The shape and strides of two operands, after merging neighbouring dimensions that are contiguous in both.
struct Walk {
  int rank = 0;
  int64_t count = 1, shape[LOOP_MAX_RANK] = {}, a[LOOP_MAX_RANK] = {}, b[LOOP_MAX_RANK] = {};

  Walk(int32_t dimensions, const int64_t* sizes, const int64_t* a_strides, const int64_t* b_strides) {
    for (int32_t r = 0; r < dimensions; r++) {
      count *= sizes[r];
      if (sizes[r] == 1) continue;
      const bool joins = rank > 0 && a[rank - 1] == a_strides[r] * sizes[r] && b[rank - 1] == b_strides[r] * sizes[r];
      if (!joins) rank++;
      shape[rank - 1] = joins ? shape[rank - 1] * sizes[r] : sizes[r];
      a[rank - 1] = a_strides[r];
      b[rank - 1] = b_strides[r];
    }
  }
  __device__ void offsets(int64_t i, int64_t& at_a, int64_t& at_b) const {
    at_a = at_b = 0;
    for (int r = rank - 1; r >= 0; r--) {
      const int64_t next = r == 0 ? 0 : i / shape[r], digit = i - next * shape[r];
      at_a += digit * a[r];
      at_b += digit * b[r];
      i = next;
    }
  }
};

int check_rank(Context& c, const char* operation, int32_t rank) {
  if (rank >= 0 && rank <= LOOP_MAX_RANK) return 0;
  return fail(c, operation + (": rank " + std::to_string(rank)) + " is outside 0 .. " + std::to_string(LOOP_MAX_RANK));
}

template <class E>
__global__ void binary_kernel(Walk walk, bool multiply, const E* a, const E* b, E* out) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= walk.count) return;
  int64_t at_a, at_b;
  walk.offsets(i, at_a, at_b);
  if constexpr (std::is_same_v<E, int32_t>) {  // wraps around
    const uint32_t x = uint32_t(a[at_a]), y = uint32_t(b[at_b]);
    out[i] = int32_t(multiply ? x * y : x + y);
  } else {
    const float x = to_float(a[at_a]), y = to_float(b[at_b]);
    out[i] = from_float<E>(multiply ? x * y : x + y);
  }
}

// Calls f(E{}) with the element types that support arithmetic.
template <class F>
int with_element(void* ctx, const char* operation, LoopDType type, F&& f) {
  if (type == LOOP_I32) return f(enter(ctx), int32_t{});
  return with_dtype(ctx, operation, type, f);
}

int binary(void* ctx, LoopDType type, LoopBinaryOp op, int32_t rank, const int64_t* shape, const void* a,
           const int64_t* a_strides, const void* b, const int64_t* b_strides, void* out) {
  return with_element(ctx, "binary", type, [&]<class E>(Context& c, E) {
    if (int status = check_rank(c, "binary", rank)) return status;
    const Walk walk(rank, shape, a_strides, b_strides);
    return check(c,
                 launch(binary_kernel<E>, dim3(unsigned(ceil_div(walk.count, 256))), dim3(256), 0, c.stream, walk,
                        op == LOOP_MULTIPLY, static_cast<const E*>(a), static_cast<const E*>(b), static_cast<E*>(out)),
                 "binary");
  });
}

template <class From, class To>
__global__ void copy_kernel(Walk walk, const From* src, To* dst) {
  using N = std::conditional_t<(sizeof(From) == 8 || sizeof(To) == 8 || std::is_same_v<From, int32_t>), double, float>;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= walk.count) return;
  int64_t from, to;
  walk.offsets(i, from, to);
  dst[to] = element<To>(number<N>(src[from]));
}

// Copies elements of one dtype that are contiguous in both operands, 16 bytes per thread.
__global__ void copy_wide_kernel(Walk walk, const uint4* src, uint4* dst) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= walk.count) return;
  int64_t from, to;
  walk.offsets(i, from, to);
  dst[to] = src[from];
}

// Combines `elements` neighbours of the last dimension into one, if all such runs are aligned in both operands.
bool widen(Walk& walk, int64_t elements) {
  const int last = walk.rank - 1;
  if (walk.rank == 0 || walk.a[last] != 1 || walk.b[last] != 1 || walk.shape[last] % elements) return false;
  for (int r = 0; r < last; r++)
    if (walk.a[r] % elements || walk.b[r] % elements) return false;
  for (int r = 0; r < last; r++) walk.a[r] /= elements, walk.b[r] /= elements;
  walk.shape[last] /= elements;
  walk.count /= elements;
  return true;
}

template <class F>
int with_any(LoopDType type, F&& f) {
  switch (type) {
    case LOOP_F32:
      return f(float{});
    case LOOP_BF16:
      return f(bf16{});
    case LOOP_F64:
      return f(double{});
    case LOOP_I32:
      return f(int32_t{});
    case LOOP_F16:
      return f(f16{});
  }
  return 1;
}

int copy_strided(void* ctx, LoopDType from, LoopDType to, int32_t rank, const int64_t* shape, const void* src,
                 const int64_t* src_strides, void* dst, const int64_t* dst_strides) {
  Context& c = enter(ctx);
  if (int status = check_rank(c, "copy_strided", rank)) return status;
  Walk walk(rank, shape, src_strides, dst_strides);
  if (from == to && (walk.rank == 0 || (walk.rank == 1 && walk.a[0] == 1 && walk.b[0] == 1)))
    return walk.count == 0
               ? 0
               : check(c,
                       cudaMemcpyAsync(dst, src, size_t(walk.count) * loop_dtype_size(from), cudaMemcpyDeviceToDevice, c.stream),
                       "copy_strided");
  if (from == to && vectorizable(0, 1, {src, dst}) && widen(walk, 16 / int64_t(loop_dtype_size(from))))
    return check(c,
                 launch(copy_wide_kernel, dim3(unsigned(ceil_div(walk.count, 256))), dim3(256), 0, c.stream, walk,
                        static_cast<const uint4*>(src), static_cast<uint4*>(dst)),
                 "copy_strided");
  return with_any(from, [&]<class From>(From) {
    return with_any(to, [&]<class To>(To) {
      return check(c,
                   launch(copy_kernel<From, To>, dim3(unsigned(ceil_div(walk.count, 256))), dim3(256), 0, c.stream, walk,
                          static_cast<const From*>(src), static_cast<To*>(dst)),
                   "copy_strided");
    });
  });
}

// One block per row: the maximum, the sum of exponentials as in head_rows, then the results.
template <class T>
__global__ void softmax_kernel(int64_t n, bool logarithm, const T* x, T* out) {
  SHARED_ARRAY(float, largest_of, 32);
  SHARED_ARRAY(double, sums, 32);
  const T* from = x + blockIdx.x * n;
  T* to = out + blockIdx.x * n;
  float largest = -INFINITY;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) largest = fmaxf(largest, to_float(from[j]));
  largest = block_max(largest, largest_of);
  float part = 0;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) part += expf(to_float(from[j]) - largest);
  const double sum = block_sum(double(part), sums);
  const float scale = float(1 / sum), log_sum = float(log(sum));
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const float y = to_float(from[j]) - largest;
    to[j] = from_float<T>(logarithm ? y - log_sum : expf(y) * scale);
  }
}

int softmax(void* ctx, LoopDType type, int64_t rows, int64_t n, int logarithm, const void* x, void* out) {
  return with_dtype(ctx, "softmax", type, [&]<class T>(Context& c, T) {
    if (n == 0) return 0;
    return check(c,
                 launch(softmax_kernel<T>, dim3(unsigned(rows)), dim3(unsigned(row_threads(n, 1, 1024))), 0, c.stream, n,
                        logarithm != 0, static_cast<const T*>(x), static_cast<T*>(out)),
                 "softmax");
  });
}

// The state of a reduction over some of the elements. index n: none yet. NaN is the largest, and on ties the lowest index wins.
struct Partial {
  double sum;
  double largest;
  int64_t index;
};
__device__ __forceinline__ void merge(Partial& p, double value, int64_t index, bool empty) {
  if (empty) return;
  const bool nan = value != value, found = p.largest != p.largest, tie = value == p.largest || (nan && found);
  if (value > p.largest || (nan && !found) || (tie && index < p.index)) p.largest = value, p.index = index;
}

// x [outer, n, inner] → out [outer, inner]. One warp per output if its elements are contiguous (inner 1), else one thread.
template <class E, int lanes>
__global__ void reduce_kernel(LoopReduceOp op, int64_t outputs, int64_t n, int64_t inner, const E* x, void* out) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / lanes, lane = threadIdx.x % lanes;
  const bool active = i < outputs;
  const E* from = active ? x + i / inner * n * inner + i % inner : x;
  Partial p{0, -INFINITY, n};
  for (int64_t j = lane; active && j < n; j += lanes) {
    const double value = number<double>(from[j * inner]);
    p.sum += value;
    merge(p, value, j, false);
  }
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    p.sum += __shfl_xor_sync(full_warp, p.sum, distance);
    const double value = __shfl_xor_sync(full_warp, p.largest, distance);
    const int64_t index = int64_t(__shfl_xor_sync(full_warp, static_cast<long long>(p.index), distance));
    merge(p, value, index, index == n);
  }
  if (!active || lane != 0) return;
  if (op == LOOP_ARGMAX) static_cast<int32_t*>(out)[i] = p.index == n ? 0 : int32_t(p.index);
  else static_cast<E*>(out)[i] = element<E>(op == LOOP_MAX ? p.largest : op == LOOP_MEAN ? p.sum / double(n) : p.sum);
}

int reduce(void* ctx, LoopDType type, LoopReduceOp op, int64_t outer, int64_t n, int64_t inner, const void* x, void* out) {
  return with_element(ctx, "reduce", type, [&]<class E>(Context& c, E) {
    if (type == LOOP_I32 && op == LOOP_MEAN)
      return fail(c, "reduce: the mean is not defined for int32; convert to float32 first");
    if (n == 0 && (op == LOOP_MAX || op == LOOP_ARGMAX)) return fail(c, "reduce: the largest of no elements is not defined");
    const auto go = [&](auto kernel, int lanes) {
      return check(c,
                   launch(kernel, dim3(unsigned(ceil_div(outer * inner * lanes, 256))), dim3(256), 0, c.stream, op, outer * inner,
                          n, inner, static_cast<const E*>(x), out),
                   "reduce");
    };
    return inner == 1 && n >= 32 ? go(reduce_kernel<E, 32>, 32) : go(reduce_kernel<E, 1>, 1);
  });
}

}  // namespace

void add_tensor(LoopBackend& table) {
  table.binary = guarded<binary>;
  table.copy_strided = guarded<copy_strided>;
  table.softmax = guarded<softmax>;
  table.reduce = guarded<reduce>;
}

}  // namespace looplm::cuda
