// Sums over segments: the rows of a sequence, a group, a stratum or an action.
#pragma once
#include <cstdint>
#include <vector>

namespace looplm {

enum class Reduce { sum, mean, count, deviation };  // deviation: the unbiased standard deviation, 0 below two values

constexpr double DEVIATION_EPSILON = 1e-8;  // added to a deviation that divides

// out[s] over the values whose segment id is s, in their order; ids outside [0, count) are left out. An empty segment gives 0.
std::vector<double> segment_reduce(Reduce op, const std::vector<double>& values, const std::vector<int32_t>& ids, int64_t count);

}  // namespace looplm
