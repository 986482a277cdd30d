// The matrices of a quantized model: codes and scales on the device, in the layout that its kernels read.
#pragma once
#include <memory>
#include <vector>

#include "weights.h"

namespace looplm {

// How products with quantized weights treat activations: unchanged, or quantized to 8 bits. by_device: as the device prefers.
enum class Activations { by_device, as_they_are, int8 };

// Weights in 8 or 4 bits with one scale for every `group` consecutive elements of a row (quantize.h); bits 0: not quantized.
// head: whether the output head is quantized too. asymmetric: every scale comes with a middle.
struct Quantization {
  int bits = 0, group = 0;
  bool head = true;
  Activations activations = Activations::by_device;
  bool asymmetric = false;
  explicit operator bool() const { return bits != 0; }
};

class QuantizedMatrices {
 public:
  // Throws UNSUPPORTED or INVALID_ARGUMENT if the device or the sizes do not allow it.
  QuantizedMatrices(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config, const Quantization& quantization);

  bool take(Role role) const;  // whether parameters of this role are quantized
  // Adds a parameter. continues: it is the next part of the matrix before; otherwise it starts a new matrix.
  void add(Parameter& p, bool continues);
  void allocate();  // allocates zeros; call after all parameters were added
  void point(Weights& weights) const;

  // The rows of a quantized tied head, which are quantized from the embedding; NULL if there is none.
  const Parameter* tied_head() const { return tied_head_.matrix >= 0 ? &tied_head_ : nullptr; }
  // Set rows [first, first + rows) of a quantized parameter (p.matrix >= 0): from values in the model's dtype, or from codes
  // [rows, in · bits / 8] and scales [rows, in / group] as files store them.
  void quantize_rows(const Parameter& p, int64_t first, int64_t rows, const void* values);
  void write_codes(const Parameter& p, int64_t first, int64_t rows, const void* codes);
  void write_scales(const Parameter& p, int64_t first, int64_t rows, const float* scales);
  std::vector<uint8_t> read_codes(const Parameter& p) const;
  std::vector<float> read_scales(const Parameter& p) const;
  std::vector<double> read(const Parameter& p) const;

 private:
  struct Matrix {
    Matrix(Role role, int32_t index) : role(role), index(index) {}
    Role role;
    int32_t index;
    size_t codes = 0, scales = 0;  // byte offsets in memory_
    int64_t out = 0, in = 0;
    LoopQuantized view{};
    int64_t groups() const { return in / view.group; }
    size_t row_bytes() const { return size_t(in) * size_t(view.bits) / 8; }
  };
  void check(const Architecture& config) const;
  int activation_bits() const;

  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const Quantization quantization_;
  std::vector<std::unique_ptr<Matrix>> matrices_;
  Buffer memory_;        // all matrices in one array, which is large enough for huge pages; most single matrices are not
  Parameter tied_head_;  // not stored in files
};

}  // namespace looplm
