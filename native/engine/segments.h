// Reductions over segments, such as the rows of a sequence, a group, a stratum or an action.
#pragma once
#include <cstdint>
#include <vector>

namespace looplm {

enum class Reduce { sum, mean, count, deviation };  // deviation: the unbiased standard deviation; 0 for fewer than two values

constexpr double DEVIATION_EPSILON = 1e-8;  // added to a standard deviation before dividing by it

// out[s] reduces the values whose segment id is s, in order. Ids outside [0, count) are ignored. An empty segment gives 0.
std::vector<double> segment_reduce(Reduce op, const std::vector<double>& values, const std::vector<int32_t>& ids, int64_t count);

}  // namespace looplm
