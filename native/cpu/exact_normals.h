// The exact initial value of one element of a parameter, as native/numeric/philox.h defines it. Compiled once, not per
// instruction set: it uses the standard library's logarithm and cosine, whose last bits the vectorized versions do not match.
#pragma once
#include <stdint.h>

namespace looplm::cpu {

// Element `index` of the normal values of (seed, parameter). truncated: redrawn outside ±3.
double exact_normal(bool truncated, uint64_t seed, uint32_t parameter, uint32_t index);

}  // namespace looplm::cpu
