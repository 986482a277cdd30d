// The CPU backend: one kernel table per instruction set, the best one that this processor runs.
#pragma once
#include "../backend.h"

// LOOPLM_CPU_ISA in the environment (baseline, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16; neon_dot, neon_i8mm, neon_bf16)
// asks for a lesser instruction set than the processor has. Null when this build has no table for it, and for any other name.
extern "C" const LoopBackend* looplm_cpu_backend(void);
