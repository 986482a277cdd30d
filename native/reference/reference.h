// The kernel table in naive float64 loops that read like the formulas of math.md. Every other backend is tested against it.
#pragma once
#include "../backend.h"

extern "C" const LoopBackend* looplm_reference_backend(void);
