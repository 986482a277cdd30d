// An exponential moving average (EMA) of a student's parameters, used as a teacher.
#pragma once
#include <memory>
#include <string>

#include "model.h"

namespace looplm {

// teacher <- decay · teacher + (1 - decay) · student. The average is kept in real (float32) even if the model is bfloat16.
class MovingAverage {
 public:
  MovingAverage(std::shared_ptr<Model> teacher, std::shared_ptr<Model> student);
  void update(double decay);
  void save(const std::string& path) const;  // saves the average in full precision, as tensors "average.<name>"
  void load(const std::string& path);

 private:
  std::shared_ptr<Model> teacher_, student_;
  const uint64_t layout_;  // of the teacher's trained parameters
  Buffer average_;         // real; empty for float32 and float64 models, where the teacher's parameters are the average
  void check() const;
  void* average(const Parameter& p);
  const void* average(const Parameter& p) const;
};

}  // namespace looplm
