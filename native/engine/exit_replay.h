// Keys and values of tokens that exited early. Sampling copies them from the exit loop to the deeper loops, where later
// tokens read them (Cache::copy_up). Training replays this: deeper loops read the same keys and values, and their gradient
// flows to the exit loop.
#pragma once
#include <memory>

#include "batch.h"
#include "model.h"

namespace looplm {

class ExitReplay {
 public:
  // Does nothing if batch.exits is empty. The arguments must outlive this object.
  ExitReplay(std::shared_ptr<Device> device, LoopDType dt, const Architecture& architecture, const DeviceBatch& batch,
             bool backward, StackMemory& memory);

  // qkv: act [N, qkv width] of block `block` in loop `loop` (counted from 0; -1: before the loops). Replaces keys and values
  // of exited rows by those of their exit loop. Works the same when the backward pass recomputes a loop: the kept values of a
  // row no longer change after it exits.
  void forward(int loop, int64_t block, void* qkv) const;
  void begin_backward() const;
  // d_qkv: ∂L/∂qkv. The gradient that reaches exited rows is stored until the backward pass arrives at their exit loop.
  void backward(int loop, int64_t block, void* d_qkv) const;

 private:
  enum Table { KEPT, GRADIENT, WAITING };  // index tables of the gathers: where a row's values come from, for every loop
  bool acts(int loop) const { return loops_ > 0 && loop >= 0; }
  void* of_block(Buffer& buffer, int64_t block, int64_t rows) const { return buffer.at(size_t(block * rows * width_) * act_); }
  void* row(void* matrix, int64_t at) const { return static_cast<char*>(matrix) + size_t(at * width_) * act_; }
  std::vector<int32_t> places() const;
  void gather(Table table, int loop, const void* from, void* to) const;
  void copy(const void* from, int64_t from_width, void* to, int64_t to_width) const;
  void* columns(void* qkv) const;

  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const Architecture& a_;
  const DeviceBatch& batch_;
  StackMemory& memory_;
  const int64_t width_;  // elements of a row's keys and values
  const size_t act_;
  int loops_ = 0;  // loops until the last row exits; 0: no row exits early
  const int32_t* tables_ = nullptr;
};

}  // namespace looplm
