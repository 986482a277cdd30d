// A model's parameters: what each is, and where it lies in an arena.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "architecture.h"
#include "device.h"

namespace looplm {

constexpr size_t PARAMETER_ALIGN = 32;  // elements of an arena: every matrix starts on a 64-byte line, with zeros before it

struct Parameter {
  std::string name;  // of the published tensor
  std::vector<int64_t> shape;
  size_t offset = 0;  // in elements of the arena
  size_t count = 0;
  Role role = Role::embedding;
  int32_t index = 0;                                          // of the role: layer, norm, …
  int64_t first_row = 0;                                      // of the role's matrix
  bool adapter = false;                                       // of the adapter's arena
  int32_t matrix = -1;                                        // of a quantized model: which of its matrices this is a part of
  bool decays() const { return adapter || is_matrix(role); }  // AdamW's weight decay
};

// Elements of a parameter. Throws OUT_OF_MEMORY when they are so many that their bytes cannot be counted.
size_t parameter_elements(const std::string& name, const std::vector<int64_t>& shape);

// The arena: parameters in order, the parts of a matrix or vector one behind the other.
class ParameterLayout {
 public:
  explicit ParameterLayout(std::vector<Parameter>& out) : out_(out) {}
  void add(Parameter p, bool continues = false);
  void reserve(size_t end) { end_ = std::max(end_, end); }  // nothing else may lie before `end`
  size_t aligned() const;

 private:
  std::vector<Parameter>& out_;
  size_t end_ = 0;
};

// Zeros what lies between parameters: sums over the whole arena see it. The parameters themselves are written by whoever makes
// the model.
void clear_gaps(Buffer& arena, const std::vector<Parameter>& parameters, size_t elements, LoopDType dt);

// First values as the description says, in `dt`, into the host's memory: a pure function of (seed, index of the parameter,
// element), the same bits on every device and number of threads.
void draw_initial(Device& device, LoopDType dt, const ParameterForm& form, uint32_t index, size_t count, uint64_t seed,
                  void* host_out);

// Host values as `dt`.
std::vector<uint8_t> rounded(LoopDType dt, const std::vector<double>& values);
// Parameters as float64 host values: every dtype converts exactly, or by rounding to nearest.
std::vector<double> download_values(const Buffer& arena, LoopDType dt, size_t count, size_t element_offset);
void upload_values(Buffer& arena, LoopDType dt, const double* values, size_t count, size_t element_offset);

}  // namespace looplm
