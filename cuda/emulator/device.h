// CUDA's device language for g++, and the emulator's half of simt.h.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "emulator.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

#define threadIdx (::looplm::emulator::self->index)
#define blockIdx (::looplm::emulator::self->block->index)
#define blockDim (::looplm::emulator::self->block->block_size)
#define gridDim (::looplm::emulator::self->block->grid_size)
constexpr int warpSize = 32;

// ---- vectors ----

#define LOOPLM_VECTORS(type, name, a2, a4)                         \
  struct alignas(a2) name##2 {                                     \
    type x, y;                                                     \
  };                                                               \
  struct alignas(a4) name##4 {                                     \
    type x, y, z, w;                                               \
  };                                                               \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
LOOPLM_VECTORS(float, float, 8, 16)
LOOPLM_VECTORS(int, int, 8, 16)
LOOPLM_VECTORS(unsigned, uint, 8, 16)
LOOPLM_VECTORS(unsigned short, ushort, 4, 8)
LOOPLM_VECTORS(signed char, char, 2, 4)
LOOPLM_VECTORS(unsigned char, uchar, 2, 4)
#undef LOOPLM_VECTORS
struct alignas(16) double2 {
  double x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- numbers ----

inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(unsigned(x)) + 1; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
// Prevents the compiler from fusing a product and a sum into an fma, as it may do on a GPU.
template <class T>
__forceinline__ T looplm_apart(T x) {
#ifdef __aarch64__
  asm("" : "+w"(x));
#else
  asm("" : "+x"(x));
#endif
  return x;
}
inline float __fadd_rn(float a, float b) { return looplm_apart(a) + looplm_apart(b); }
inline float __fmul_rn(float a, float b) { return looplm_apart(a * b); }
inline double __dadd_rn(double a, double b) { return looplm_apart(a) + looplm_apart(b); }
inline double __dmul_rn(double a, double b) { return looplm_apart(a * b); }
// Rounded once. If the processor has no fma instruction, the library function would be slow; the product is exact in double.
inline float __fmaf_rn(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return float(double(a) * b + c);
#endif
}
#define fmaf __fmaf_rn
// CUDA's min and max accept mixed integer types; std's need one type, which the kernels use.
using std::max;
using std::min;

// ---- global memory ----

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
void __stcs(T* pointer, T value) {
  *pointer = value;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

template <class T>
T atomicAdd(T* pointer, std::type_identity_t<T> x) {
  static_assert(std::is_integral_v<T>, "the order of float atomics is not fixed");
  return __atomic_fetch_add(pointer, x, __ATOMIC_SEQ_CST);
}
template <class T>
T atomicExch(T* pointer, std::type_identity_t<T> x) {
  return __atomic_exchange_n(pointer, x, __ATOMIC_SEQ_CST);
}
template <class T>
T atomicCAS(T* pointer, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  __atomic_compare_exchange_n(pointer, &expected, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}
template <class T, class Change>
T looplm_atomic_change(T* pointer, Change change) {
  T old = __atomic_load_n(pointer, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(pointer, &old, change(old), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}
template <class T>
T atomicMax(T* pointer, std::type_identity_t<T> x) {
  return looplm_atomic_change(pointer, [x](T old) { return old > x ? old : x; });
}
template <class T>
T atomicMin(T* pointer, std::type_identity_t<T> x) {
  return looplm_atomic_change(pointer, [x](T old) { return old < x ? old : x; });
}
template <class T>
T atomicOr(T* pointer, std::type_identity_t<T> x) {
  return __atomic_fetch_or(pointer, x, __ATOMIC_SEQ_CST);
}
template <class T>
T atomicInc(T* pointer, std::type_identity_t<T> limit) {
  return looplm_atomic_change(pointer, [limit](T old) { return old >= limit ? T(0) : T(old + 1); });
}

// ---- barriers, shuffles, votes ----

inline void __syncthreads(looplm::emulator::Where where = looplm::emulator::Where::current()) {
  looplm::emulator::barrier(0, 0, true, where);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, looplm::emulator::Where where = looplm::emulator::Where::current()) {
  looplm::emulator::collective(looplm::emulator::Kind::syncwarp, mask, nullptr, nullptr, nullptr, where);
}

namespace looplm::emulator {

template <class T>
struct ShuffleLane {
  T value;
  int source;  // the lane to read; outside [0, 32): the lane's own value
};

template <class T>
T shuffle(uint32_t mask, T value, int source, Where where) {
  const ShuffleLane<T> in{value, source};
  T out = value;
  collective(
      Kind::shuffle, mask, &in, &out,
      [](Collective& c) {
        for (int lane = 0; lane < warp_size; ++lane) {
          if (!(c.mask >> lane & 1)) continue;
          const int source = static_cast<const ShuffleLane<T>*>(c.in[lane])->source;
          if (!(c.mask >> source & 1))
            fault("lane %d reads lane %d in a shuffle that this lane does not take part in (mask %08x), %s:%u", lane, source,
                  c.mask, c.where.file_name(), c.where.line());
          *static_cast<T*>(c.out[lane]) = static_cast<const ShuffleLane<T>*>(c.in[source])->value;
        }
      },
      where);
  return out;
}

inline uint32_t ballot(uint32_t mask, bool vote, Where where) {
  uint32_t out = 0;
  collective(
      Kind::vote, mask, &vote, &out,
      [](Collective& c) {
        uint32_t votes = 0;
        for (int lane = 0; lane < warp_size; ++lane)
          if ((c.mask >> lane & 1) && *static_cast<const bool*>(c.in[lane])) votes |= 1u << lane;
        for (int lane = 0; lane < warp_size; ++lane)
          if (c.mask >> lane & 1) *static_cast<uint32_t*>(c.out[lane]) = votes;
      },
      where);
  return out;
}

}  // namespace looplm::emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              looplm::emulator::Where where = looplm::emulator::Where::current()) {
  const int own = int(looplm::emulator::self->lane());
  return looplm::emulator::shuffle(mask, value, (own & -width) | (lane & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  looplm::emulator::Where where = looplm::emulator::Where::current()) {
  const int own = int(looplm::emulator::self->lane()), other = own ^ lanes;
  return looplm::emulator::shuffle(mask, value, other < (own & -width) + width ? other : own, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                 looplm::emulator::Where where = looplm::emulator::Where::current()) {
  const int own = int(looplm::emulator::self->lane()), other = own - int(lanes);
  return looplm::emulator::shuffle(mask, value, other >= (own & -width) ? other : own, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                   looplm::emulator::Where where = looplm::emulator::Where::current()) {
  const int own = int(looplm::emulator::self->lane()), other = own + int(lanes);
  return looplm::emulator::shuffle(mask, value, other < (own & -width) + width ? other : own, where);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, looplm::emulator::Where where = looplm::emulator::Where::current()) {
  return looplm::emulator::ballot(mask, vote, where);
}
inline int __any_sync(unsigned mask, bool vote, looplm::emulator::Where where = looplm::emulator::Where::current()) {
  return looplm::emulator::ballot(mask, vote, where) != 0;
}
inline int __all_sync(unsigned mask, bool vote, looplm::emulator::Where where = looplm::emulator::Where::current()) {
  return looplm::emulator::ballot(mask, vote, where) == mask;
}

namespace looplm::cuda {

// ---- shared memory ----

// One element of shared memory: converts to its value and can be assigned.
template <class T>
class SharedElement {
 public:
  explicit SharedElement(const emulator::Span& span) : span_(span) {}
  operator std::remove_const_t<T>() const {
    span_.read(sizeof(T), alignof(T));
    std::remove_const_t<T> value;
    std::memcpy(&value, span_.at, sizeof(T));
    return value;
  }
  const SharedElement& operator=(const T& value) const {
    span_.write(sizeof(T), alignof(T));
    std::memcpy(span_.at, &value, sizeof(T));
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const { return *this = T(other); }
  const SharedElement& operator+=(const T& value) const { return *this = T(*this) + value; }
  const SharedElement& operator-=(const T& value) const { return *this = T(*this) - value; }
  const SharedElement& operator*=(const T& value) const { return *this = T(*this) * value; }

 private:
  emulator::Span span_;
};

template <class T>
class Shared {
 public:
  Shared() = default;
  explicit Shared(const emulator::Span& span) : span_(span) {}
  operator Shared<const T>() const requires(!std::is_const_v<T>) { return Shared<const T>(span_); }
  SharedElement<T> operator[](int64_t i) const { return SharedElement<T>((*this + i).span_); }
  SharedElement<T> operator*() const { return (*this)[0]; }
  Shared operator+(int64_t i) const { return Shared({span_.at + i * int64_t(sizeof(T)), span_.begin, span_.end}); }
  Shared operator-(int64_t i) const { return *this + -i; }
  Shared& operator+=(int64_t i) { return *this = *this + i; }
  const emulator::Span& span() const { return span_; }

 private:
  emulator::Span span_;
};

#define SHARED_ARRAY(T, name, count) \
  static const char name##_key = 0;  \
  const ::looplm::cuda::Shared<T> name(::looplm::emulator::static_shared(&name##_key, (count) * sizeof(T)))

template <class T>
Shared<T> dynamic_shared(size_t byte_offset, size_t count) {
  return Shared<T>(emulator::dynamic_shared(byte_offset, count * sizeof(T)));
}
template <class U, class T>
Shared<U> shared_cast(Shared<T> pointer) {
  return Shared<U>(pointer.span());
}
template <class T>
T atomicAdd(const Shared<T>& pointer, std::type_identity_t<T> x) {
  static_assert(std::is_integral_v<T>, "the order of float atomics is not fixed");
  return emulator::shared_atomic<T>(pointer.span(), [x](T old) { return T(old + x); });
}
template <class T>
T atomicMax(const Shared<T>& pointer, std::type_identity_t<T> x) {
  return emulator::shared_atomic<T>(pointer.span(), [x](T old) { return old > x ? old : x; });
}
using ::atomicAdd;
using ::atomicMax;

// ---- global memory ----

template <class V, class T>
V load(const T* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(V) != 0)
    emulator::fault("load of %zu bytes from %p", sizeof(V), (const void*)pointer);
  V value;
  std::memcpy(&value, pointer, sizeof(V));
  return value;
}
template <class T, class V>
void store(T* pointer, V value) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(V) != 0)
    emulator::fault("store of %zu bytes to %p", sizeof(V), (void*)pointer);
  std::memcpy(pointer, &value, sizeof(V));
}

inline void prefetch(const void*) {}

// ---- barriers, cp.async ----

inline void named_barrier(int id, int threads, emulator::Where where = emulator::Where::current()) {
  emulator::barrier(id, threads, true, where);
}
inline void named_barrier_arrive(int id, int threads, emulator::Where where = emulator::Where::current()) {
  emulator::barrier(id, threads, false, where);
}
inline void grid_barrier(emulator::Where where = emulator::Where::current()) { emulator::grid_barrier(where); }

template <int bytes = 16, class T, class U>
void copy_async(Shared<T> to, const U* from, int valid = bytes) {
  static_assert(bytes == 16 || bytes == 8 || bytes == 4);
  emulator::copy_async(to.span(), from, bytes, valid);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int groups>
void copy_async_wait() {
  emulator::copy_async_wait(groups);
}

// ---- bf16 ----

struct bf16 {
  uint16_t bits;
};
inline float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
inline bf16 to_bf16(float x) {
  const uint32_t bits = __float_as_uint(x);
  return {uint16_t(x != x ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
inline uint32_t pack_bf16(float low, float high) { return uint32_t(to_bf16(high).bits) << 16 | to_bf16(low).bits; }

inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto low = [](uint32_t x) { return double(__uint_as_float(x << 16)); };
  const auto high = [](uint32_t x) { return double(__uint_as_float(x & 0xFFFF0000u)); };
  return pack_bf16(float(low(a) * low(b) + low(c)), float(high(a) * high(b) + high(c)));
}

inline float fast_exp2(float x) { return x < -126 ? 0 : exp2f(x); }

// ---- tensor cores ----

template <int count, bool transposed>
void load_matrix_lanes(uint32_t (&r)[count], const emulator::Span& row, emulator::Where where) {
  uint16_t own[8] = {};
  if (emulator::self->lane() < 8 * count) {
    row.read(16, 16);
    std::memcpy(own, row.at, 16);
  }
  emulator::collective(
      emulator::Kind::load_matrix, 0xFFFFFFFFu, own, r,
      [](emulator::Collective& c) {
        const auto element = [&](int matrix, int row, int column) {
          return uint32_t(static_cast<const uint16_t*>(c.in[8 * matrix + row])[column]);
        };
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < count; ++i) {
            const int a = lane / 4, b = 2 * (lane % 4);
            static_cast<uint32_t*>(c.out[lane])[i] =
                transposed ? element(i, b, a) | element(i, b + 1, a) << 16 : element(i, a, b) | element(i, a, b + 1) << 16;
          }
      },
      where);
}
template <int count, class T>
void load_matrix(uint32_t (&r)[count], Shared<T> row, emulator::Where where = emulator::Where::current()) {
  load_matrix_lanes<count, false>(r, row.span(), where);
}
template <int count, class T>
void load_matrix_transposed(uint32_t (&r)[count], Shared<T> row, emulator::Where where = emulator::Where::current()) {
  load_matrix_lanes<count, true>(r, row.span(), where);
}

void mma_bf16_warp(emulator::Collective& c);
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     emulator::Where where = emulator::Where::current()) {
  const uint32_t operands[6] = {a[0], a[1], a[2], a[3], b0, b1};
  emulator::collective(emulator::Kind::mma, 0xFFFFFFFFu, operands, c, mma_bf16_warp, where);
}

// ---- launches ----

namespace detail {
template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;
};
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   bool cooperative, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (cooperative && !emulator::fits_together(grid, block, shared_bytes)) return cudaErrorCooperativeLaunchTooLarge;
  const Call<Parameters...> call{kernel, {Parameters(arguments)...}};
  return emulator::submit(stream, [=] {
    std::string error;
    const auto entry = [](const void* p) {
      const auto& c = *static_cast<const Call<Parameters...>*>(p);
      std::apply(c.kernel, c.arguments);
    };
    return emulator::run({grid, block, shared_bytes, cooperative, entry, &call, reinterpret_cast<const void*>(kernel)}, error)
               ? cudaSuccess
               : emulator::report_fault(error);
  });
}
}  // namespace detail

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  return detail::launch(kernel, grid, block, shared_bytes, stream, false, arguments...);
}
template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                               Arguments&&... arguments) {
  return detail::launch(kernel, grid, block, shared_bytes, stream, true, arguments...);
}

}  // namespace looplm::cuda
