#include "moving_average.h"

#include <cmath>
#include <cstring>

#include "../numeric/half.h"
#include "safetensors.h"

namespace looplm {

MovingAverage::MovingAverage(std::shared_ptr<Model> teacher, std::shared_ptr<Model> student)
    : teacher_(std::move(teacher)), student_(std::move(student)), layout_(teacher_->layout()) {
  check();
  if (teacher_->dt != LOOP_BF16) return;
  average_ = Buffer(teacher_->device, teacher_->trained_elements() * loop_dtype_size(teacher_->real()));
  for (auto& p : teacher_->trained()) {
    const std::vector<double> values = teacher_->read(p);
    upload_reals(average_, teacher_->dt, values.data(), values.size(), p.offset);
  }
}

void MovingAverage::check() const {
  if (teacher_->device != student_->device || teacher_->dt != student_->dt || teacher_->config != student_->config ||
      !teacher_->same_adapter(*student_))
    throw Error("INVALID_ARGUMENT", "moving average",
                "the teacher must have the student's configuration, device, dtype and adapter");
  if (layout_ != teacher_->layout())
    throw Error("INVALID_ARGUMENT", "moving average",
                "an adapter was added to the teacher or removed from it after this moving average was created: create a new "
                "moving average, or a new trainer");
}

void* MovingAverage::average(const Parameter& p) {
  return average_ ? average_.at(p.offset * loop_dtype_size(teacher_->real())) : teacher_->writable_data(p);
}

const void* MovingAverage::average(const Parameter& p) const {
  return average_ ? average_.at(p.offset * loop_dtype_size(teacher_->real())) : teacher_->parameter_data(p);
}

void MovingAverage::update(double decay) {
  check();
  const Uninterrupted uninterrupted(*teacher_->device);  // a half-made average would be counted twice when it is made again
  for (auto& p : student_->trained())
    teacher_->device->run(&LoopBackend::moving_average, "moving average", teacher_->dt, int64_t(p.count), 1 - decay,
                          student_->parameter_data(p), average(p), average_ ? teacher_->writable_data(p) : nullptr);
  teacher_->touch();
}

void MovingAverage::save(const std::string& path) const {
  check();
  const size_t size = loop_dtype_size(teacher_->real());
  std::vector<SafetensorsOutput> tensors;
  for (const Parameter& p : teacher_->trained())
    tensors.push_back({"average." + p.name, safetensors_dtype(teacher_->real()), p.shape, [this, &p, size](uint8_t* out) {
                         teacher_->device->run(&LoopBackend::copy_out, "copy_out", out, average(p), p.count * size);
                       }});
  write_safetensors(path, tensors, {});
}

void MovingAverage::load(const std::string& path) {
  check();
  const SafetensorsFile file(path);
  for (const Parameter& p : teacher_->trained()) {
    const auto found = file.tensors().find("average." + p.name);
    if (found == file.tensors().end()) refuse_tensor(path, "average." + p.name, "is missing");
    if (found->second.dtype != safetensors_dtype(teacher_->real()) || found->second.shape != p.shape)
      refuse_tensor(path, "average." + p.name, "has another dtype or shape than the model's");
    const auto* values = static_cast<const uint8_t*>(found->second.data);
    bool finite = first_not_finite(teacher_->real(), values, p.count) == p.count;
    for (size_t i = 0; average_ && i < p.count; i++) {  // the largest float32 values overflow to infinity in bfloat16
      float value;
      std::memcpy(&value, values + i * sizeof value, sizeof value);
      finite &= std::isfinite(bf16_to_float(float_to_bf16(value)));
    }
    if (!finite) refuse_tensor(path, "average." + p.name, "has a value that is not finite");
    check_checksum(path, "average." + p.name, found->second);
  }
  if (file.tensors().size() != teacher_->trained().size()) refuse_file(path, "it holds tensors that are not this model's");
  const Uninterrupted uninterrupted(*teacher_->device);
  for (const Parameter& p : teacher_->trained()) {
    const SafetensorsEntry& entry = file.tensors().at("average." + p.name);
    teacher_->device->run(&LoopBackend::copy_in, "copy_in", average(p), entry.data, entry.bytes);
    if (!average_) continue;
    std::vector<double> values = download_reals(average_, teacher_->dt, p.count, p.offset);
    teacher_->write(p, values.data());
  }
  teacher_->touch();
}

}  // namespace looplm
