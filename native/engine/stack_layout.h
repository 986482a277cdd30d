// Where the steps of a stack lie: which buffers each reads and writes, and what a backward keeps of them.
#pragma once
#include <numeric>
#include <vector>

#include "block.h"

namespace looplm {

// Which loops run, which of them are read, and what of them a backward goes through. Loops count from 0.
struct LoopPlan {
  LoopPlan(int loops) : loops(loops), read(size_t(loops)) { std::iota(read.begin(), read.end(), 0); }
  int loops;
  std::vector<int> read;            // ascending: only these have hidden states; at first all
  int backward = 0;                 // how many of the last loops carry a gradient; the others are constants; 0: all
  std::vector<int> constant_steps;  // per loop: how many of its first steps are constants as well; empty: 0
  int reads() const { return int(read.size()); }
};

// For the backward: nothing is forward only.
enum class StackKeep { nothing, all, per_loop, per_layer };

class StackLayout {
 public:
  using Keep = StackKeep;
  using Registers = std::vector<void*>;  // act [N, D] each

 protected:
  // A step where it stands: the buffers that it reads and writes, act [N, D].
  struct Run {
    const Step* step;
    int loop;  // -1: before the loops
    void *in, *from, *out;
    BlockMemory block;  // of a block, with its first plane in the cache
    int64_t plane;
    bool constant;  // no gradient goes through it
  };
  using Program = std::vector<Run>;
  struct Room {  // where the next value and the next block lie
    char *values, *blocks;
  };

  StackLayout(Model& model, const Weights& weights, const DeviceBatch& batch, const LoopPlan& plan, Keep keep,
              const CacheUse* cache, bool first_given);

  // The steps of a program that follow on `registers`, which then are those behind it. Values and blocks that are kept come from
  // `room`.
  Program place(const std::vector<Step>& steps, int loop, bool reading, size_t constant, Registers& registers, Room& room);
  // Programs that nothing is kept of, on registers that the caller has.
  Program place_begin(const Registers& to);
  Program place_read(const Registers& from);
  bool carries(int loop) const { return loop >= first_backward_; }
  bool writes(int32_t to) const;                             // whether a loop does
  int slot(int loop) const { return slots_[size_t(loop)]; }  // of a loop in `hidden`; -1: not read
  void* hidden_at(int loop) const { return static_cast<char*>(hidden_) + size_t(slot(loop)) * state_bytes_; }

  const Architecture& a_;
  const Weights& weights_;
  StackMemory& memory_;
  const DeviceBatch batch_;
  const LoopPlan plan_;
  const int loops_;
  const Keep keep_;
  const CacheUse* cache_;
  const int first_;           // loop that is run first
  const int first_backward_;  // loop that carries gradient first
  const size_t act_, real_;   // bytes of an element
  const size_t state_bytes_;
  Block block_;
  Program begin_;
  std::vector<Program> programs_, reads_;  // of each loop, and of the readout behind each loop that is read
  Registers inputs_;                       // the registers before the first loop
  std::vector<Registers> outputs_;         // and behind every one
  void* hidden_ = nullptr;                 // act [K, N, D]

 private:
  void lay_out();
  void lay_out_boundaries();
  size_t constant_steps(int loop) const;
  bool keeps_boundary(int loop) const;

  std::vector<int> slots_;
  std::vector<void*> boundaries_;                              // where the registers behind each loop lie: [T, R]
  char *passing_values_ = nullptr, *passing_block_ = nullptr;  // of steps that no backward goes through
};

}  // namespace looplm
