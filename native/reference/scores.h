// Lists of scores: dot products, and the log-sum-exp shifted by the largest one.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

namespace looplm::reference {

inline double log_sum_exp(const std::vector<double>& scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double s : scores) sum += std::exp(s - largest);
  return largest + std::log(sum);
}

inline double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace looplm::reference
