// Small models, and their parameters as values and as files.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../../backends.h"
#include "../../engine/model.h"
#include "../../numeric/half.h"
#include "../small_architecture.h"
#include "files.h"

namespace looplm::test {

inline SmallSizes small_config(bool tied) { return {11, 6, 5, 2, 3, 1, 2, 2, tied, 0.3}; }

inline std::shared_ptr<Model> small_model(const std::string& device, LoopDType dt, bool tied = false, uint64_t seed = 1) {
  auto model = std::make_shared<Model>(open_device(device, 2), dt, small_architecture(small_config(tied)));
  model->initialize(seed);
  return model;
}

inline std::vector<uint8_t> all_raw(const Model& model) {
  std::vector<uint8_t> out;
  for (const Parameter& p : model.parameters()) {
    std::vector<uint8_t> raw(p.count * loop_dtype_size(model.dt));
    model.read_raw(p, raw.data());
    out.insert(out.end(), raw.begin(), raw.end());
  }
  return out;
}

// Every parameter as float64, after applying `round`.
inline std::vector<double> all_values(
    const Model& model, const std::function<double(double)>& round = [](double x) { return x; }) {
  std::vector<double> out;
  for (const Parameter& p : model.parameters())
    for (const double x : model.read(p)) out.push_back(round(x));
  return out;
}

inline double to_bf16(double x) { return double(bf16_to_float(float_to_bf16(float(x)))); }
inline double to_f32(double x) { return double(float(x)); }

// A model's parameters as tensors of a file, which a test can then corrupt.
inline std::vector<SafetensorsOutput> outputs(const Model& model, const std::string& dtype,
                                              const std::function<std::vector<uint8_t>(const std::vector<double>&)>& encode) {
  std::vector<SafetensorsOutput> out;
  for (const Parameter& p : model.parameters()) out.push_back(output(p.name, dtype, p.shape, encode(model.read(p))));
  return out;
}
inline std::vector<uint8_t> encode_f32(const std::vector<double>& v) { return bytes_of(std::vector<float>(v.begin(), v.end())); }
inline std::vector<uint8_t> encode_f16(const std::vector<double>& v) {
  std::vector<uint16_t> bits;
  for (const double x : v) bits.push_back(float_to_f16(float(x)));
  return bytes_of(bits);
}

}  // namespace looplm::test
