// The matrices of a quantized model: codes and scales on the device, as kernels read them.
#pragma once
#include <memory>
#include <vector>

#include "weights.h"

namespace looplm {

// What products with quantized weights take of activations: as they are, or 8 bits. by_device: what its properties prefer.
enum class Activations { by_device, as_they_are, int8 };

// Weights in 8 or 4 bits with a scale for every `group` neighbours of a row (quantize.h); bits 0: none. head: the head's too.
// asymmetric: each scale comes with a middle.
struct Quantization {
  int bits = 0, group = 0;
  bool head = true;
  Activations activations = Activations::by_device;
  bool asymmetric = false;
  explicit operator bool() const { return bits != 0; }
};

class QuantizedMatrices {
 public:
  // Throws UNSUPPORTED, or INVALID_ARGUMENT, where the device or the sizes do not allow it.
  QuantizedMatrices(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config, const Quantization& quantization);

  bool take(Role role) const;  // parameters of this role are quantized
  // A parameter that is the next matrix, or that continues the one before.
  void add(Parameter& p, bool continues);
  void allocate();  // zeros, when all are added
  void point(Weights& weights) const;

  // The rows of a tied head, which are quantized from those of the embedding; NULL when there are none.
  const Parameter* tied_head() const { return tied_head_.matrix >= 0 ? &tied_head_ : nullptr; }
  // Rows [first, first + rows) of a quantized parameter (p.matrix >= 0): from values of the model's dtype, or as they lie in
  // files, codes [rows, in · bits / 8] and scales [rows, in / group].
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
    size_t codes = 0, scales = 0;  // where they begin in memory_, in bytes
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
  Buffer memory_;        // of all matrices: one array is large enough for large pages, which most matrices are not
  Parameter tied_head_;  // in no file
};

}  // namespace looplm
