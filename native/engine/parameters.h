// A model's parameters: name, shape and role of each, and its position in the arena.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "architecture.h"
#include "device.h"

namespace looplm {

constexpr size_t PARAMETER_ALIGN = 32;  // in elements: every matrix starts at a multiple of 64 bytes, with zeros before it

struct Parameter {
  std::string name;  // name of the published tensor
  std::vector<int64_t> shape;
  size_t offset = 0;  // in elements of the arena
  size_t count = 0;
  Role role = Role::embedding;
  int32_t index = 0;                                          // index within the role: layer, norm, …
  int64_t first_row = 0;                                      // first row in the role's matrix
  bool adapter = false;                                       // stored in the adapter's arena
  int32_t matrix = -1;                                        // if quantized: index of the matrix that contains it
  bool decays() const { return adapter || is_matrix(role); }  // whether AdamW applies weight decay
};

// The number of elements of a shape. Throws OUT_OF_MEMORY if its bytes could not be counted.
size_t parameter_elements(const std::string& name, const std::vector<int64_t>& shape);

// Lays out the arena: parameters in order, the parts of one matrix or vector directly after each other.
class ParameterLayout {
 public:
  explicit ParameterLayout(std::vector<Parameter>& out) : out_(out) {}
  void add(Parameter p, bool continues = false);
  void reserve(size_t end) { end_ = std::max(end_, end); }  // keeps the space up to `end` free of later parameters
  size_t aligned() const;

 private:
  std::vector<Parameter>& out_;
  size_t end_ = 0;
};

// Zeros the gaps between parameters, because sums over the whole arena include them. Does not touch the parameters
// themselves.
void clear_gaps(Buffer& arena, const std::vector<Parameter>& parameters, size_t elements, LoopDType dt);

// Draws a parameter's initial values, as `form` describes them, into host memory as `dt`. A pure function of (seed, index of
// the parameter, element): every device and number of threads gives the same bits.
void draw_initial(Device& device, LoopDType dt, const ParameterForm& form, uint32_t index, size_t count, uint64_t seed,
                  void* host_out);

// Converts host values to `dt`.
std::vector<uint8_t> rounded(LoopDType dt, const std::vector<double>& values);
// Parameters as float64 host values. Downloading is exact; uploading rounds to nearest.
std::vector<double> download_values(const Buffer& arena, LoopDType dt, size_t count, size_t element_offset);
void upload_values(Buffer& arena, LoopDType dt, const double* values, size_t count, size_t element_offset);

}  // namespace looplm
