// The way back through a stack: from ∂L/∂hidden to the gradients of the weights and of the vectors that stood in place of tokens.
#pragma once
#include <optional>

#include "stack.h"

namespace looplm {

class StackBackward {
 public:
  StackBackward(Stack& stack, const Weights& gradients, GradientsFinal final);
  void run(void* d_hidden);  // Stack::backward

 private:
  using Run = Stack::Run;
  using Program = Stack::Program;
  // ∂L/∂registers on the way back. at[r]: real [N, D] where it lies, NULL while it is zero; own[r]: a buffer for it.
  struct RegisterGradients {
    std::vector<void*> own, at;
  };
  // ∂L/∂x in block_.d_x(), x = RMS(value; weight) or without a weight x = value, not yet part of the gradient of register `to`.
  struct Pending {
    int32_t to;
    const void *value, *weight;
    void* d_weight;
  };

  void backward_read(int loop, void* d_read, RegisterGradients& d, RegisterGradients& of_read);
  void take_vector_gradients(void* d_embedded);
  void inject_backward(const Run& run, RegisterGradients& d);
  void backward(const Program& program, RegisterGradients& d);
  void backward_block(const Program& program, size_t i, RegisterGradients& d);
  void flush(RegisterGradients& d);
  void begin_way_back();
  void announce_final();
  void* zeroed(RegisterGradients& d, int32_t to);
  void add_to(RegisterGradients& d, int32_t to, void* from);
  void copy_to(RegisterGradients& d, int32_t to, const void* from);
  void cast_gradient(const void* from, void* to);  // real to act

  Stack& s_;
  const Weights& g_;
  const Architecture& a_;
  Device& device_;
  const LoopDType dt_;
  const Weights& weights_;
  const DeviceBatch& batch_;
  const size_t real_, act_;  // bytes of an element
  Block& block_;
  std::optional<Pending> pending_;
  const GradientsFinal final_;  // who hears of them, when, and how many steps of the way back have begun
  std::optional<FinalGradients> final_gradients_;
  size_t steps_back_ = 0;
};

}  // namespace looplm
