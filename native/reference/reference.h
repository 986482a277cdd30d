// The kernel table in naive float64 loops that read like the formulas of math.md: the truth that every other backend is tested
// against.
#pragma once
#include "../backend.h"

extern "C" const LoopBackend* looplm_reference_backend(void);
