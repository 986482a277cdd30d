// Keys and values of tokens that left the loops early. Sampling copies those of the exit loop to the deeper ones, where later
// tokens find them (Cache::copy_up). Training replays that: deeper loops read them, and their gradient goes to the exit loop.
#pragma once
#include <memory>

#include "batch.h"
#include "model.h"

namespace looplm {

class ExitReplay {
 public:
  // batch.exits empty: nothing happens. What is given outlives this.
  ExitReplay(std::shared_ptr<Device> device, LoopDType dt, const Architecture& architecture, const DeviceBatch& batch,
             bool backward, StackMemory& memory);

  // qkv: act [N, qkv width] of block `block` of loop `loop`, counted from 0; -1: before the loops. Rows that have left get the
  // keys and values of their exit loop. A loop that runs again for its backward gets them too: what is kept of a row changes only
  // until it leaves.
  void forward(int loop, int64_t block, void* qkv) const;
  void begin_backward() const;
  // d_qkv: ∂L/∂qkv. What reaches rows that have left waits for their exit loop.
  void backward(int loop, int64_t block, void* d_qkv) const;

 private:
  enum Table { KEPT, GRADIENT, WAITING };  // where gathers find a row's values, at every loop
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
  const int64_t width_;  // of a row's keys and values
  const size_t act_;
  int loops_ = 0;  // loops until the last row exits; 0: no row exits early
  const int32_t* tables_ = nullptr;
};

}  // namespace looplm
