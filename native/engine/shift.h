// Shift-FFN (Xu et al., arXiv 2505.17153): a correction from the previous token's input is added to the input of each MLP.
//   x̃_i = x_i + C m_i,   m_i = relu(B [x_(i-1) ; x_i]) · (A x_(i-1)),   x_(-1) = 0
// Let B = [P Q]. A token's successor needs only y = [P x | A x], 2 · rank numbers, which decoding caches. The arrays with
// rank columns are small, so relu is built from tensor operations and backends need no kernel for it.
#pragma once
#include <vector>

#include "device.h"

namespace looplm {

struct Shift {                                    // of one layer; as gradients: real, NULL if not trained
  void *a = nullptr, *b = nullptr, *c = nullptr;  // [rank, D], [rank, 2 D], [D, rank]
  int64_t rank = 0;
  explicit operator bool() const { return rank > 0; }
};

// Scratch memory, reused from call to call.
struct ShiftMemory {
  Buffer states, product, edited;  // act: y; m; x̃ or rows gathered from the cache
  Buffer real, largest, steps;     // real: sums; int32: 1 where relu is positive; real: the constants 0 and 1
};

// Where the rows of a batch find the y of their previous tokens.
struct ShiftSource {
  const int32_t* previous = nullptr;  // device [N]: row of the batch; N: no previous token; N + 1 + i: the i-th of `earlier`
  std::vector<const void*> earlier;   // act [rank] each: P x, A x, P x, A x, … of tokens in the cache
  // For decoding instead: device [N], the cache slot of the previous token, in the same numbering as the rows' slots.
  // cached_p and cached_a are the two halves of y in this block's plane.
  const int32_t* slots = nullptr;
  const void *cached_p = nullptr, *cached_a = nullptr;  // act [slots, rank]
  const std::vector<int32_t>* first = nullptr;          // rows without a previous token, whose slot is ignored; NULL: none
};

class ShiftFfn {
 public:
  ShiftFfn(std::shared_ptr<Device> device, LoopDType dt, int64_t rows, int64_t hidden, ShiftMemory& memory)
      : device_(std::move(device)), dt_(dt), real_(loop_real(dt)), rows_(rows), hidden_(hidden), memory_(memory) {}

  // Computes y of the rows: act [N, 2 rank], followed by a row of zeros and space for `earlier` more rows. Valid until the
  // next call.
  const void* states(const Shift& w, const void* x, int64_t earlier);
  // Call states() first, unless decoding. gate_up: act [N, 2 rank], the inputs of relu and of the product, kept for the
  // backward pass. Returns x̃, act [N, D], valid until the next call.
  const void* forward(const Shift& w, const void* x, const ShiftSource& source, void* gate_up);
  // Recomputes x̃.
  const void* edited(const Shift& w, const void* x, const void* gate_up);
  // dx: act [N, D]; ∂L/∂x̃ on entry, ∂L/∂x on exit.
  void backward(const Shift& w, const Shift& d, const void* x, const int32_t* previous, const void* gate_up, void* dx);

 private:
  // Parts of memory_.real; each is real [N, rank] except the last two.
  struct Reals {
    void *zero, *gate /* behind `zero` */, *relu, *up, *dm, *slope, *d_rows /* [N, 2 rank] */, *d_states /* [N + 1, 2 rank] */;
  };
  Reals reals(int64_t rank);
  void gemm(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const void* b,
            int64_t ldb, void* c, int64_t ldc, int flags = 0) {
    device_->run(&LoopBackend::gemm, "shift", dt_, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, flags);
  }
  void copy(LoopDType from, LoopDType to, int64_t columns, const void* src, int64_t src_width, void* dst, int64_t dst_width);
  void multiply(int64_t count, const void* a, const void* b, void* out);  // real
  const void* product(const Shift& w, const void* gate_up);               // m, act [N, rank]; also fills relu and up
  const void* act_at(const void* p, int64_t element) const {
    return static_cast<const char*>(p) + size_t(element) * loop_dtype_size(dt_);
  }
  void* act_at(void* p, int64_t element) const { return static_cast<char*>(p) + size_t(element) * loop_dtype_size(dt_); }
  void* real_at(void* p, int64_t element) const { return static_cast<char*>(p) + size_t(element) * loop_dtype_size(real_); }

  const std::shared_ptr<Device> device_;
  const LoopDType dt_, real_;
  const int64_t rows_, hidden_;
  ShiftMemory& memory_;
};

}  // namespace looplm
