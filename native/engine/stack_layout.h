// The memory of a stack's steps: which buffers each step reads and writes, and what is kept for the backward pass.
#pragma once
#include <numeric>
#include <vector>

#include "block.h"

namespace looplm {

// Which loops run, which are read, and which carry gradient. Loops count from 0.
struct LoopPlan {
  LoopPlan(int loops) : loops(loops), read(size_t(loops)) { std::iota(read.begin(), read.end(), 0); }
  int loops;
  std::vector<int> read;            // ascending; only these have hidden states. Default: all
  int backward = 0;                 // how many of the last loops carry gradient; the others are constants. 0: all
  std::vector<int> constant_steps;  // per loop: how many of its first steps are constants as well; empty: 0
  int reads() const { return int(read.size()); }
};

// What is kept for the backward pass; `nothing`: forward only.
enum class StackKeep { nothing, all, per_loop, per_layer };

class StackLayout {
 public:
  using Keep = StackKeep;
  using Registers = std::vector<void*>;  // act [N, D] each

 protected:
  // One step of a program with its buffers, act [N, D].
  struct Run {
    const Step* step;
    int loop;  // -1: before the loops
    void *in, *from, *out;
    BlockMemory block;  // of a block step; plane: its first plane in the KV cache
    int64_t plane;
    bool constant;  // carries no gradient
  };
  using Program = std::vector<Run>;
  struct Room {  // where the next kept value and the next kept block are stored
    char *values, *blocks;
  };

  StackLayout(Model& model, const Weights& weights, const DeviceBatch& batch, const LoopPlan& plan, Keep keep,
              const CacheUse* cache, bool first_given);

  // Assigns buffers to the steps of a program. registers: the buffers of its input; on return, those of its output. Kept
  // values and blocks are taken from `room`.
  Program place(const std::vector<Step>& steps, int loop, bool reading, size_t constant, Registers& registers, Room& room);
  // Programs that keep nothing, on registers that the caller owns.
  Program place_begin(const Registers& to);
  Program place_read(const Registers& from);
  bool carries(int loop) const { return loop >= first_backward_; }
  bool writes(int32_t to) const;                             // whether any loop step writes register `to`
  int slot(int loop) const { return slots_[size_t(loop)]; }  // index of a loop in `hidden`; -1: not read
  void* hidden_at(int loop) const { return static_cast<char*>(hidden_) + size_t(slot(loop)) * state_bytes_; }

  const Architecture& a_;
  const Weights& weights_;
  StackMemory& memory_;
  const DeviceBatch batch_;
  const LoopPlan plan_;
  const int loops_;
  const Keep keep_;
  const CacheUse* cache_;
  const int first_;           // first loop to run
  const int first_backward_;  // first loop that carries gradient
  const size_t act_, real_;   // bytes of an element
  const size_t state_bytes_;
  Block block_;
  Program begin_;
  std::vector<Program> programs_, reads_;  // one program per loop, and one readout per loop that is read
  Registers inputs_;                       // before the first loop
  std::vector<Registers> outputs_;         // after each loop
  void* hidden_ = nullptr;                 // act [K, N, D]

 private:
  void lay_out();
  void lay_out_boundaries();
  size_t constant_steps(int loop) const;
  bool keeps_boundary(int loop) const;

  std::vector<int> slots_;
  std::vector<void*> boundaries_;                              // registers after each loop: [T, R]
  char *passing_values_ = nullptr, *passing_block_ = nullptr;  // memory of steps without a backward pass
};

}  // namespace looplm
