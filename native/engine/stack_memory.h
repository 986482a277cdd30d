// The working memory of a stack, reused from call to call (stack.h, block.h).
#pragma once
#include <memory>

#include "linear.h"
#include "shift.h"

namespace looplm {

struct StackBuffers {
  Buffer registers, hidden, boundaries, values, blocks;    // act
  Buffer x, activation;                                    // act
  Buffer d_activation, d_branch, d_x, d_attention, d_qkv;  // act
  Buffer d_registers, real;                                // real; `real` is scratch
  Buffer projected, heads;                      // act, in a block with output gate: QKV and gate together, and gathered heads
  Buffer extended, extended_out, extended_lse;  // attention over cached prefixes and the batch
  Buffer replay_kept, replay_mixed;             // act: exit_replay.h
  Buffer replay_gradients, replay_waiting;      // act
  Buffer replay_index;                          // int32
  LinearMemory linear;
  ShiftMemory shift;
};
struct StackMemory : StackBuffers {
  explicit StackMemory(std::shared_ptr<Device> device) : device(std::move(device)) {}
  // Grows the buffer to at least `bytes`, plus 64 bytes that vector loads may read past the end. If there is no memory, frees
  // all buffers: this call fails, and the next one probably needs less.
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
  uint64_t generation = 0;  // changes whenever a buffer moves
};

}  // namespace looplm
