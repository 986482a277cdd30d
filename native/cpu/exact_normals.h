// One first value of a parameter as native/numeric/philox.h defines it, compiled once for every processor: the standard library's
// logarithm and cosine, whose last bits vectors do not give.
#pragma once
#include <stdint.h>

namespace looplm::cpu {

// Element `index` of the normals (seed, parameter); truncated: redrawn outside of ±3.
double exact_normal(bool truncated, uint64_t seed, uint32_t parameter, uint32_t index);

}  // namespace looplm::cpu
