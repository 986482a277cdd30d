#include "quantized_matrices.h"

#include <cstring>

#include "quantize.h"

namespace looplm {

QuantizedMatrices::QuantizedMatrices(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config,
                                     const Quantization& quantization)
    : device_(std::move(device)), dt_(dt), quantization_(quantization) {
  if (!quantization_) return;
  check(config);
  if (!config.tied || !quantization_.head) return;
  tied_head_ = {"head", {config.vocabulary, config.hidden}, 0, size_t(config.vocabulary * config.hidden), Role::head};
  add(tied_head_, false);
}

bool QuantizedMatrices::take(Role role) const {
  return quantization_ && (is_layer_matrix(role) || (role == Role::head && quantization_.head));
}

void QuantizedMatrices::add(Parameter& p, bool continues) {
  if (!continues) matrices_.push_back(std::make_unique<Matrix>(p.role, p.index));
  matrices_.back()->in = p.shape[1];
  matrices_.back()->out += p.shape[0];
  p.matrix = int32_t(matrices_.size()) - 1;
}

void QuantizedMatrices::allocate() {
  size_t bytes = 0;
  const auto take = [&bytes](size_t size) {  // each array starts at a multiple of 128 bytes
    const size_t begin = bytes;
    bytes += (size + 127) / 128 * 128;
    return begin;
  };
  const int64_t side = device_->quantized_rows();
  for (auto& matrix : matrices_) {
    matrix->view = {quantization_.bits, quantization_.group, nullptr, nullptr, activation_bits(), quantization_.asymmetric};
    const int64_t rows = (matrix->out + side - 1) / side * side;
    matrix->codes = take(size_t(rows) * matrix->row_bytes() + 64);
    matrix->scales = take(size_t(matrix->groups() * rows) * 4);
  }
  if (bytes == 0) return;
  memory_ = Buffer(device_, bytes);
  memory_.zero(bytes);
  for (auto& matrix : matrices_) {
    matrix->view.codes = memory_.at(matrix->codes);
    matrix->view.scales = static_cast<const float*>(memory_.at(matrix->scales));
  }
}

void QuantizedMatrices::point(Weights& weights) const {
  for (const auto& matrix : matrices_) {
    if (matrix->role == Role::head) weights.quantized_head = &matrix->view, weights.head = nullptr;
    else (weights.layers[size_t(matrix->index)].*matrix_of(matrix->role)).quantized = &matrix->view;
  }
}

void QuantizedMatrices::check(const Architecture& config) const {
  if (!device_->has(&LoopBackend::gemm_quantized))
    throw Error("UNSUPPORTED", "quantize",
                "device \"" + device_->name() + "\" has no products with quantized weights; cpu and cuda have");
  if (quantization_.bits != 4 && quantization_.bits != 8) throw Error("INVALID_ARGUMENT", "quantize", "bits must be 4 or 8");
  if (quantization_.asymmetric && quantization_.bits != 4)
    throw Error("INVALID_ARGUMENT", "quantize", "asymmetric weights have 4 bits, not " + std::to_string(quantization_.bits));
  if (quantization_.asymmetric && !device_->asymmetric_weights())
    throw Error("UNSUPPORTED", "quantize",
                "device \"" + device_->name() + "\" has no products with asymmetric weights; cpu and reference have. Use 'int4'");
  const int group = quantization_.group;
  for (int64_t width : {config.hidden, config.attention_width(), config.intermediate})
    if (group < 32 || group % 32 != 0 || width % group != 0)
      throw Error("INVALID_ARGUMENT", "quantize",
                  "groups of " + std::to_string(group) + " do not fit: a group is a multiple of 32 and divides the widths " +
                      std::to_string(config.hidden) + ", " + std::to_string(config.attention_width()) + " and " +
                      std::to_string(config.intermediate));
}

int QuantizedMatrices::activation_bits() const {
  const int has = device_->int8_activations();
  if (quantization_.activations == Activations::int8 && has == 0)
    throw Error("UNSUPPORTED", "quantize",
                "device \"" + device_->name() +
                    "\" does not quantize activations: omit activations, or set 'float'; cpu and reference support 'int8'");
  return quantization_.activations == Activations::int8 || (quantization_.activations == Activations::by_device && has == 2) ? 8
                                                                                                                             : 0;
}

void QuantizedMatrices::quantize_rows(const Parameter& p, int64_t first, int64_t rows, const void* values) {
  const CodeFormat format{quantization_.bits, quantization_.group, quantization_.asymmetric};
  const size_t in = size_t(p.shape[1]), row_codes = in * size_t(format.bits) / 8, groups = in / size_t(format.group);
  std::vector<float> row(in), scales(size_t(rows) * groups);
  std::vector<uint8_t> codes(size_t(rows) * row_codes);
  for (size_t i = 0; i < size_t(rows); i++) {
    to_floats(dt_, static_cast<const char*>(values) + i * in * loop_dtype_size(dt_), in, row.data());
    quantize_row(format, row.data(), int64_t(in), &codes[i * row_codes], &scales[i * groups]);
  }
  write_codes(p, first, rows, codes.data());
  write_scales(p, first, rows, scales.data());
}
// On a CPU the units of `side` > 1 consecutive rows are interleaved. Calls f(place, i) for each 32-bit unit, or each scale:
// `place` is its index in device memory, `i` its index in a plain [rows, units] array.
template <class F>
static void side_by_side(int64_t side, int64_t first, int64_t rows, int64_t units, F f) {
  for (int64_t i = 0; i < rows; i++) {
    const int64_t row = first + i, begin = row / side * units * side + row % side;
    for (int64_t u = 0; u < units; u++) f(size_t(begin + u * side), size_t(i * units + u));
  }
}
void QuantizedMatrices::write_codes(const Parameter& p, int64_t first, int64_t rows, const void* codes) {
  Matrix& m = *matrices_[size_t(p.matrix)];
  const size_t row = m.row_bytes();
  const int64_t side = device_->quantized_rows();
  if (side == 1) return memory_.upload(codes, size_t(rows) * row, m.codes + size_t(p.first_row + first) * row);
  auto* units = static_cast<char*>(memory_.at(m.codes));
  side_by_side(side, p.first_row + first, rows, int64_t(row / 4),
               [&](size_t place, size_t i) { std::memcpy(units + 4 * place, static_cast<const char*>(codes) + 4 * i, 4); });
}
void QuantizedMatrices::write_scales(const Parameter& p, int64_t first, int64_t rows, const float* scales) {
  Matrix& m = *matrices_[size_t(p.matrix)];
  const int64_t groups = m.groups(), side = device_->quantized_rows();
  auto* to = static_cast<float*>(memory_.at(m.scales));
  if (side > 1)
    return side_by_side(side, p.first_row + first, rows, groups, [&](size_t place, size_t i) { to[place] = scales[i]; });
  std::vector<float> column(static_cast<size_t>(rows));  // on the device, the scales of one group are contiguous over the
                                                         // rows
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t i = 0; i < rows; i++) column[size_t(i)] = scales[i * groups + g];
    memory_.upload(column.data(), size_t(rows) * 4, m.scales + size_t(g * m.out + p.first_row + first) * 4);
  }
}
std::vector<uint8_t> QuantizedMatrices::read_codes(const Parameter& p) const {
  const Matrix& m = *matrices_[size_t(p.matrix)];
  const size_t row = m.row_bytes();
  const int64_t side = device_->quantized_rows();
  std::vector<uint8_t> codes(size_t(p.shape[0]) * row);
  if (side == 1) {
    memory_.download(codes.data(), codes.size(), m.codes + size_t(p.first_row) * row);
    return codes;
  }
  const auto* units = static_cast<const char*>(memory_.at(m.codes));
  side_by_side(side, p.first_row, p.shape[0], int64_t(row / 4),
               [&](size_t place, size_t i) { std::memcpy(&codes[4 * i], units + 4 * place, 4); });
  return codes;
}
std::vector<float> QuantizedMatrices::read_scales(const Parameter& p) const {
  const Matrix& m = *matrices_[size_t(p.matrix)];
  const size_t rows = size_t(p.shape[0]), groups = size_t(m.groups());
  const int64_t side = device_->quantized_rows();
  std::vector<float> column(rows), scales(rows * groups);
  if (side > 1) {
    const auto* from = static_cast<const float*>(memory_.at(m.scales));
    side_by_side(side, p.first_row, p.shape[0], m.groups(), [&](size_t place, size_t i) { scales[i] = from[place]; });
    return scales;
  }
  for (size_t g = 0; g < groups; g++) {
    memory_.download(column.data(), rows * 4, m.scales + (g * size_t(m.out) + size_t(p.first_row)) * 4);
    for (size_t i = 0; i < rows; i++) scales[i * groups + g] = column[i];
  }
  return scales;
}

std::vector<double> QuantizedMatrices::read(const Parameter& p) const {
  return dequantize_rows({quantization_.bits, quantization_.group, quantization_.asymmetric}, p.shape[0], p.shape[1],
                         read_codes(p).data(), read_scales(p).data());
}

}  // namespace looplm
