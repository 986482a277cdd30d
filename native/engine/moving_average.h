// A teacher that follows a student.
#pragma once
#include <memory>
#include <string>

#include "model.h"

namespace looplm {

// teacher <- decay · teacher + (1 - decay) · student, kept in dtype `real`, also for models of another dtype.
class MovingAverage {
 public:
  MovingAverage(std::shared_ptr<Model> teacher, std::shared_ptr<Model> student);
  void update(double decay);
  void save(const std::string& path) const;  // the exact average, "average.<name>"
  void load(const std::string& path);

 private:
  std::shared_ptr<Model> teacher_, student_;
  Buffer average_;  // real; empty in float32 and float64, where the teacher's own parameters are it
  void check() const;
  void* average(const Parameter& p);
  const void* average(const Parameter& p) const;
};

}  // namespace looplm
