// How many cycles a warp's accesses to shared memory take, by the rule of the hardware: 32 banks of 4 bytes; 8 bytes a lane go
// half a warp at a time, 16 bytes a quarter; different words of one bank go one after the other. Counted when
// LOOPLM_EMULATOR_BANKS names a file, which gets a line for each kernel at the end: its offset in the library, phases, cycles.
// tools/cuda-banks.mjs reads it.
//
// The lanes of a warp run one after the other here. Their accesses since the last barrier or warp function are matched by number:
// the n-th of every lane is one instruction. Where lanes branch apart the count is off.
#pragma once
#include <cstddef>
#include <cstdint>

namespace looplm::emulator {

struct Thread;

extern const bool counting_banks;
void note_access(Thread& thread, const unsigned char* at, size_t bytes);
// The lanes of a warp have met: what they did before is done.
void settle_accesses(Thread& any, const void* kernel);

}  // namespace looplm::emulator
