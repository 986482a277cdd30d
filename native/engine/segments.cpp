#include "segments.h"

#include <cmath>

namespace looplm {

std::vector<double> segment_reduce(Reduce op, const std::vector<double>& values, const std::vector<int32_t>& ids, int64_t count) {
  std::vector<double> sum(size_t(count), 0.0), members(size_t(count), 0.0);
  auto inside = [&](size_t i) { return ids[i] >= 0 && ids[i] < count; };
  for (size_t i = 0; i < values.size(); i++)
    if (inside(i)) {
      sum[size_t(ids[i])] += values[i];
      members[size_t(ids[i])] += 1;
    }
  if (op == Reduce::sum) return sum;
  if (op == Reduce::count) return members;
  for (size_t s = 0; s < sum.size(); s++) sum[s] /= members[s] > 0 ? members[s] : 1;
  if (op == Reduce::mean) return sum;
  std::vector<double> squares(size_t(count), 0.0);
  for (size_t i = 0; i < values.size(); i++)
    if (inside(i)) squares[size_t(ids[i])] += (values[i] - sum[size_t(ids[i])]) * (values[i] - sum[size_t(ids[i])]);
  for (size_t s = 0; s < squares.size(); s++) squares[s] = members[s] > 1 ? std::sqrt(squares[s] / (members[s] - 1)) : 0;
  return squares;
}

}  // namespace looplm
