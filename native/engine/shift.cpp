#include "shift.h"

#include <algorithm>
#include <utility>

namespace looplm {

void ShiftFfn::copy(LoopDType from, LoopDType to, int64_t columns, const void* src, int64_t src_width, void* dst,
                    int64_t dst_width) {
  const int64_t shape[] = {rows_, columns}, in[] = {src_width, 1}, out[] = {dst_width, 1};
  device_->run(&LoopBackend::copy_strided, "shift", from, to, 2, shape, src, in, dst, out);
}
void ShiftFfn::multiply(int64_t count, const void* a, const void* b, void* out) {
  const int64_t stride = 1;
  device_->run(&LoopBackend::binary, "shift", real_, LOOP_MULTIPLY, 1, &count, a, &stride, b, &stride, out);
}

// The sums with D columns (edited()) use the same memory, because the two are never needed at once.
ShiftFfn::Reals ShiftFfn::reals(int64_t rank) {
  const int64_t R = rows_ * rank;
  memory_.real.reserve(device_, size_t(std::max(rows_ * hidden_, 10 * R + 2 * rank)) * loop_dtype_size(real_) + 64);
  void* p = memory_.real.as<>();
  return {p,
          real_at(p, R),
          real_at(p, 2 * R),
          real_at(p, 3 * R),
          real_at(p, 4 * R),
          real_at(p, 5 * R),
          real_at(p, 6 * R),
          real_at(p, 8 * R)};
}

const void* ShiftFfn::states(const Shift& w, const void* x, int64_t earlier) {
  const int64_t N = rows_, D = hidden_, r = w.rank;
  const size_t act = loop_dtype_size(dt_);
  memory_.states.reserve(device_, size_t((N + 1 + earlier) * 2 * r) * act + 64);
  void* y = memory_.states.as<>();
  gemm(0, 1, N, r, D, x, D, w.b, 2 * D, y, 2 * r);
  gemm(0, 1, N, r, D, x, D, w.a, D, act_at(y, r), 2 * r);
  device_->run(&LoopBackend::zero, "shift", act_at(y, N * 2 * r), size_t(2 * r) * act);
  return y;
}

const void* ShiftFfn::forward(const Shift& w, const void* x, const ShiftSource& source, void* gate_up) {
  const int64_t N = rows_, D = hidden_, r = w.rank;
  const size_t act = loop_dtype_size(dt_);
  if (source.slots) {
    memory_.edited.reserve(device_, size_t(N * std::max(D, r)) * act + 64);
    void* row = memory_.edited.as<>();
    for (const auto& [cached, column] : {std::pair(source.cached_p, int64_t(0)), std::pair(source.cached_a, r)}) {
      device_->run(&LoopBackend::gather_rows, "shift", dt_, N, r, source.slots, cached, row);
      copy(dt_, dt_, r, row, r, act_at(gate_up, column), 2 * r);
    }
    if (source.first)
      for (const int32_t i : *source.first)
        device_->run(&LoopBackend::zero, "shift", act_at(gate_up, 2 * r * i), size_t(2 * r) * act);
  } else {
    void* y = memory_.states.as<>();
    for (size_t i = 0; i < source.earlier.size(); i++)
      device_->run(&LoopBackend::copy, "shift", act_at(y, (2 * (N + 1) + int64_t(i)) * r), source.earlier[i], size_t(r) * act);
    device_->run(&LoopBackend::embed, "shift", dt_, N, 2 * r, source.previous, y, gate_up);
  }
  // P x_(i-1) + Q x_i is summed in real and rounded once.
  void* gate = reals(r).gate;
  copy(dt_, real_, r, gate_up, 2 * r, gate, r);
  gemm(0, 1, N, r, D, x, D, act_at(w.b, D), 2 * D, gate, r, LOOP_GEMM_ACCUMULATE);
  copy(real_, dt_, r, gate, r, gate_up, 2 * r);
  return edited(w, x, gate_up);
}

const void* ShiftFfn::product(const Shift& w, const void* gate_up) {
  const int64_t r = w.rank, R = rows_ * r;
  const Reals of = reals(r);
  memory_.product.reserve(device_, size_t(R) * loop_dtype_size(dt_) + 64);
  device_->run(&LoopBackend::zero, "shift", of.zero, size_t(R) * loop_dtype_size(real_));
  copy(dt_, real_, r, gate_up, 2 * r, of.gate, r);
  copy(dt_, real_, r, act_at(gate_up, r), 2 * r, of.up, r);
  device_->run(&LoopBackend::reduce, "relu", real_, LOOP_MAX, int64_t(1), int64_t(2), R, of.zero, of.relu);
  multiply(R, of.relu, of.up, of.d_rows);
  copy(real_, dt_, r, of.d_rows, r, memory_.product.as<>(), r);
  return memory_.product.as<>();
}
const void* ShiftFfn::edited(const Shift& w, const void* x, const void* gate_up) {
  const int64_t N = rows_, D = hidden_, r = w.rank;
  const void* m = product(w, gate_up);
  memory_.edited.reserve(device_, size_t(N * std::max(D, r)) * loop_dtype_size(dt_) + 64);
  void *sum = memory_.real.as<>(), *out = memory_.edited.as<>();
  copy(dt_, real_, D, x, D, sum, D);
  gemm(0, 1, N, D, r, m, r, w.c, r, sum, D, LOOP_GEMM_ACCUMULATE);
  copy(real_, dt_, D, sum, D, out, D);
  return out;
}

// ∂m = Cᵀ ∂x̃;   ∂g = ∂m u relu'(g),  ∂u = ∂m relu(g);   ∂y_(i-1) += [∂g_i | ∂u_i];   ∂x = ∂x̃ + Qᵀ ∂g + [P ; A]ᵀ ∂y
void ShiftFfn::backward(const Shift& w, const Shift& d, const void* x, const int32_t* previous, const void* gate_up, void* dx) {
  const int64_t N = rows_, D = hidden_, r = w.rank, R = N * r;
  const size_t act = loop_dtype_size(dt_);
  gemm(1, 0, D, r, N, dx, D, product(w, gate_up), r, d.c, r, LOOP_GEMM_ACCUMULATE);
  const Reals of = reals(r);
  if (!memory_.steps) {
    memory_.steps = Buffer(device_, 2 * sizeof(double) + 64);
    const double steps[] = {0, 1};
    upload_reals(memory_.steps, dt_, steps, 2);
  }
  memory_.largest.reserve(device_, size_t(R) * sizeof(int32_t) + 64);
  device_->run(&LoopBackend::reduce, "relu", real_, LOOP_ARGMAX, int64_t(1), int64_t(2), R, of.zero,
               memory_.largest.as<>());  // argmax takes the first of equals, so the slope of relu at 0 is 0
  device_->run(&LoopBackend::gather_rows, "relu", real_, R, int64_t(1),
               static_cast<const int32_t*>(memory_.largest.as<int32_t>()), memory_.steps.as<>(), of.slope);
  gemm(0, 0, N, r, D, dx, D, w.c, r, of.dm, r, LOOP_GEMM_REAL_OUT);
  multiply(R, of.dm, of.relu, of.relu);  // ∂u
  multiply(R, of.dm, of.up, of.up);
  multiply(R, of.up, of.slope, of.up);  // ∂g
  copy(real_, real_, r, of.up, r, of.d_rows, 2 * r);
  copy(real_, real_, r, of.relu, r, real_at(of.d_rows, r), 2 * r);

  // Gradient of y: a token may have several successors (shared prompts), so their rows are added. Row N collects those
  // without a predecessor.
  device_->run(&LoopBackend::zero, "shift backward", of.d_states, size_t((N + 1) * 2 * r) * loop_dtype_size(real_));
  device_->run(&LoopBackend::embed_backward, "shift backward", dt_, N, 2 * r, N + 1, previous, of.d_rows, of.d_states);
  memory_.states.reserve(device_, size_t((N + 1) * 2 * r) * act + 64);
  memory_.edited.reserve(device_, size_t(N * std::max(D, 2 * r)) * act + 64);
  void *dy = memory_.states.as<>(), *dg = memory_.edited.as<>();
  copy(real_, dt_, 2 * r, of.d_states, 2 * r, dy, 2 * r);
  copy(real_, dt_, r, of.up, r, dg, r);

  const void *dy_a = act_at(dy, r), *q = act_at(w.b, D);
  gemm(1, 0, r, D, N, dg, r, x, D, real_at(d.b, D), 2 * D, LOOP_GEMM_ACCUMULATE);
  gemm(1, 0, r, D, N, dy, 2 * r, x, D, d.b, 2 * D, LOOP_GEMM_ACCUMULATE);
  gemm(1, 0, r, D, N, dy_a, 2 * r, x, D, d.a, D, LOOP_GEMM_ACCUMULATE);

  void* sum = memory_.real.as<>();
  copy(dt_, real_, D, dx, D, sum, D);
  gemm(0, 0, N, D, r, dg, r, q, 2 * D, sum, D, LOOP_GEMM_ACCUMULATE);
  gemm(0, 0, N, D, r, dy, 2 * r, w.b, 2 * D, sum, D, LOOP_GEMM_ACCUMULATE);
  gemm(0, 0, N, D, r, dy_a, 2 * r, w.a, D, sum, D, LOOP_GEMM_ACCUMULATE);
  copy(real_, dt_, D, sum, D, dx, D);
}

}  // namespace looplm
