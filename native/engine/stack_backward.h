// The backward pass of a stack: from ∂L/∂hidden to the gradients of the weights and of the input vectors.
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
  // ∂L/∂registers during the backward pass. at[r]: where it is stored, real [N, D]; NULL while it is zero. own[r]: a buffer
  // for it.
  struct RegisterGradients {
    std::vector<void*> own, at;
  };
  // The gradient in block_.d_x() that is not yet added to register `to`: ∂L/∂x with x = RMS(value; weight), or x = value if
  // weight is NULL. It is kept back because a preceding block applies the norm's backward itself.
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
  void list_backward_steps();
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
  const GradientsFinal final_;  // callback for final gradients, the table of when they are, and the number of steps that have
                                // begun
  std::optional<FinalGradients> final_gradients_;
  size_t steps_back_ = 0;
};

}  // namespace looplm
