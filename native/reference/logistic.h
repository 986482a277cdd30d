// The logistic function, and its logarithm without overflow.
#pragma once
#include <algorithm>
#include <cmath>

namespace looplm::reference {

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double log_sigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); }

}  // namespace looplm::reference
