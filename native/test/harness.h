// The parts of every kernel test: a registry, device buffers with a canary, random inputs, and comparisons.
//
// A test calls one function of the table on the backend under test and on `reference`, with the same inputs.
//   float64   (the reference itself) against the test's plain evaluation: relative error ≤ 1e-12
//   float32   against reference: ≤ 1e-5
//   bfloat16  against reference: ≤ 2 × the error of the plain evaluation, which rounds after every pass like eager PyTorch;
//             real outputs that are computed from act inputs in float32 arithmetic only: ≤ 1e-5
// The relative error of an array is ‖x - truth‖ / ‖truth‖. Every output starts as NaN.
#pragma once
#include <bit>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../backend.h"

namespace looplm::test {

using Values = std::vector<double>;
using Ints = std::vector<int32_t>;

double rounded_seldom(LoopDType type, double x);  // to float16 and int32

// x as stored in a dtype: rounded to nearest, ties to even. Tests spend most of their time here.
inline double rounded(LoopDType type, double x) {
  if (type == LOOP_F64) return x;
  if (type == LOOP_F32) return float(x);
  if (type != LOOP_BF16) return rounded_seldom(type, x);
  const uint32_t bits = std::bit_cast<uint32_t>(float(x));  // bfloat16 is the upper half; a carry out of the mantissa correctly
                                                            // increments the exponent
  return x == x ? std::bit_cast<float>((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u) : x;
}
Values rounded(LoopDType type, Values x);

// An open backend and the dtype it is tested in.
class Device {
 public:
  Device(const LoopBackend* table, LoopDType dt, int threads = 0);  // threads 0: one per core
  ~Device();
  Device(const Device&) = delete;
  void expect(int status, const char* operation) const;  // throws with last_error

  const LoopBackend& table;
  const LoopDType dt;
  void* const ctx;
  LoopDType real() const { return loop_real(dt); }
};

// Device memory. `values` checks that nothing was written past the end.
class Buffer {
 public:
  Buffer(const Device& device, LoopDType type, size_t count);          // filled with NaN
  Buffer(const Device& device, LoopDType type, const Values& values);  // rounded to the type
  Buffer(const Device& device, const Ints& values);
  Buffer(const Device& device, const void* host, size_t bytes);
  Buffer(Buffer&& other) noexcept
      : device_(other.device_), type_(other.type_), bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  ~Buffer();
  Values values() const { return values_as(type_); }
  Values values_as(LoopDType type) const;  // the same bytes, read as another dtype
  operator void*() const { return data_; }
  void* when(bool given) const { return given ? data_ : nullptr; }  // an argument that may be NULL
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }

 private:
  void fill(std::vector<unsigned char> bytes);
  const Device& device_;
  LoopDType type_;
  size_t bytes_;
  void* data_;
};

inline Buffer act(const Device& d, const Values& v) { return {d, d.dt, v}; }
inline Buffer act(const Device& d, size_t count) { return {d, d.dt, count}; }
inline Buffer real(const Device& d, const Values& v) { return {d, d.real(), v}; }
inline Buffer real(const Device& d, size_t count) { return {d, d.real(), count}; }
template <class T>
Buffer structs(const Device& d, const std::vector<T>& v) {
  return {d, v.data(), v.size() * sizeof(T)};
}

// Arithmetic of the plain evaluation in the dtype under test. act() rounds like a stored activation, real() like an
// accumulator.
struct Plain {
  LoopDType dt;
  double act(double x) const { return rounded(dt, x); }
  double real(double x) const { return rounded(loop_real(dt), x); }
};

double relative_error(const Values& got, const Values& truth);

class Test {
 public:
  Test(std::string name, const Device& device, const Device& reference)
      : device(device), reference(reference), name_(std::move(name)) {}

  // Random inputs. Each call draws new numbers, so they depend on the order of the calls in a test.
  Values act_normal(size_t count, double scale = 1) { return normals(device.dt, count, scale); }       // rounded to act
  Values real_normal(size_t count, double scale = 1) { return normals(device.real(), count, scale); }  // rounded to real
  Ints integers(size_t count, int32_t below);
  double uniform();
  bool is_reference() const { return device.dt == LOOP_F64; }
  Plain plain() const { return {device.dt}; }
  // Whether `close` uses the plain evaluation, which takes most of a test's time. close_real uses it only in float64.
  bool reads_plain() const { return device.dt != LOOP_F32; }

  // Each prints one line.
  void close(const std::string& what, const Values& got, const Values& truth, const Values& plain) {
    close_as(device.dt, what, got, truth, plain);
  }
  void close_as(LoopDType type, const std::string& what, const Values& got, const Values& truth,
                const Values& plain);  // the rule at the top of this file
  void close_real(const std::string& what, const Values& got, const Values& truth, const Values& plain, double tolerance = 1e-5);
  void within(const std::string& what, const Values& got, const Values& truth, double tolerance);
  void same_bits(const std::string& what, const Values& a, const Values& b);
  void claim(const std::string& what, bool holds) { claim(what, holds, holds ? "holds" : "does not hold"); }
  void claim(const std::string& what, bool holds, const std::string& detail);
  // Checks analytic = ∂loss/∂x by central differences, with a relative error ≤ 1e-6. loss must read x.
  void gradient(const std::string& what, const Values& analytic, Values& x, const std::function<double()>& loss,
                double step = 1e-5);

  const Device& device;
  const Device& reference;
  int failures = 0, cases = 0;

 private:
  Values normals(LoopDType type, size_t count, double scale);
  void line(const std::string& what, bool ok, const std::string& detail);
  std::string name_;
  uint32_t draws_ = 0;
};

enum class On { every_backend, reference_alone };  // gradient checks need float64 and test the reference itself

struct Registration {
  const char* name;
  On on;
  void (*run)(Test&);
};
std::vector<Registration>& registry();

struct Register {
  Register(const char* name, On on, void (*run)(Test&)) { registry().push_back({name, on, run}); }
};

#define LOOPLM_TEST_ON(identifier, name, on)                                             \
  static void identifier(::looplm::test::Test&);                                         \
  static const ::looplm::test::Register identifier##_registration(name, on, identifier); \
  static void identifier(::looplm::test::Test& t)
#define KERNEL_TEST(identifier, name) LOOPLM_TEST_ON(identifier, name, ::looplm::test::On::every_backend)
#define REFERENCE_TEST(identifier, name) LOOPLM_TEST_ON(identifier, name, ::looplm::test::On::reference_alone)

inline double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
// The elements [begin, begin + count).
inline Values slice(const Values& v, size_t begin, size_t count) {
  return Values(v.begin() + ptrdiff_t(begin), v.begin() + ptrdiff_t(begin + count));
}

}  // namespace looplm::test
