// The CPU backend: one kernel table per instruction set, of which the best that this processor supports is used.
#pragma once
#include "../backend.h"

// The environment variable LOOPLM_CPU_ISA (baseline, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16; neon_dot, neon_i8mm,
// neon_bf16) names the highest instruction set to use. The table is the best one, at or below it, that the processor and this
// build have. NULL if there is none, or if the name is unknown.
extern "C" const LoopBackend* looplm_cpu_backend(void);
