#include "exact_normals.h"

#include "../numeric/philox.h"

namespace looplm::cpu {

double exact_normal(bool truncated, uint64_t seed, uint32_t parameter, uint32_t index) {
  return truncated ? truncated_normal(seed, parameter, 0, index) : normal(seed, parameter, 0, index);
}

}  // namespace looplm::cpu
