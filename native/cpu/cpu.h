// The CPU backend: one kernel table per instruction set, of which the best that this processor supports is used.
#pragma once
#include "../backend.h"

// The environment variable LOOPLM_CPU_ISA (baseline, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16; neon_dot, neon_i8mm,
// neon_bf16) selects a lower instruction set. NULL if this build lacks it, or for an unknown name.
extern "C" const LoopBackend* looplm_cpu_backend(void);
