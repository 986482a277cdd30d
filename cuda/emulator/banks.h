// Counts the cycles of a warp's shared memory accesses by the hardware's rules. There are 32 banks of 4 bytes. Accesses of 8
// bytes per lane are served one half warp at a time, those of 16 bytes a quarter warp. Different words of one bank are served
// one after the other. Enabled if LOOPLM_EMULATOR_BANKS names a file. At the end it gets one line per kernel: offset in the
// library, phases, cycles. tools/cuda-banks.mjs reads it.
//
// The emulator runs the lanes of a warp one after the other. It matches their accesses since the last barrier or warp
// function by number: the n-th access of every lane is one instruction. If lanes branch differently, the count is wrong.
#pragma once
#include <cstddef>
#include <cstdint>

namespace looplm::emulator {

struct Thread;

extern const bool counting_banks;
void note_access(Thread& thread, const unsigned char* at, size_t bytes);
// Call when the lanes of a warp have met: their earlier accesses are complete.
void settle_accesses(Thread& any, const void* kernel);

}  // namespace looplm::emulator
