// Lists of scores: dot products, the log-sum-exp shifted by the largest one, and sums of rows.
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

inline void add_scaled(double* sum, double scale, const double* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += scale * row[i];
}

}  // namespace looplm::reference
