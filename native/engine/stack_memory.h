// What a stack works in, kept from call to call (stack.h, block.h).
#pragma once
#include <memory>

#include "linear.h"
#include "shift.h"

namespace looplm {

struct StackBuffers {
  Buffer registers, hidden, boundaries, values, blocks;    // act
  Buffer x, activation;                                    // act
  Buffer d_activation, d_branch, d_x, d_attention, d_qkv;  // act
  Buffer d_registers, real;                                // real; the last one scratch
  Buffer projected, heads;                                 // act, of a block: all projections, and heads apart
  Buffer extended, extended_out, extended_lse;             // attention behind cached prefixes
  Buffer replay_kept, replay_mixed;                        // act: exit_replay.h
  Buffer replay_gradients, replay_waiting;                 // act
  Buffer replay_index;                                     // int32
  LinearMemory linear;
  ShiftMemory shift;
};
struct StackMemory : StackBuffers {
  explicit StackMemory(std::shared_ptr<Device> device) : device(std::move(device)) {}
  // At least that many bytes, and some that vectors may read behind them. When there is no memory for them, all of it is given
  // back: the call has failed, and the next one is likely to need less.
  void* reserve(Buffer& buffer, size_t bytes) {
    if (bytes + 64 > buffer.bytes()) generation++;
    try {
      buffer.reserve(device, bytes + 64);
    } catch (...) {
      release();
      throw;
    }
    return buffer.as<>();
  }
  void release() { static_cast<StackBuffers&>(*this) = {}; }
  const std::shared_ptr<Device> device;
  uint64_t generation = 0;  // another number when a buffer has moved
};

}  // namespace looplm
