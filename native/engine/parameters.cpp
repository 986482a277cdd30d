#include "parameters.h"

#include <algorithm>
#include <array>

#include "../numeric/half.h"
#include "../numeric/philox.h"

namespace looplm {

namespace {

// Upper bound on the number of elements, so that byte counts cannot overflow.
constexpr size_t MOST = size_t(1) << 58;
[[noreturn]] void too_many(const std::string& name) {
  throw Error("OUT_OF_MEMORY", "model",
              "with " + name + " the model has more parameters than any memory holds: use smaller sizes");
}

}  // namespace

size_t parameter_elements(const std::string& name, const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t n : shape)
    if (__builtin_mul_overflow(count, size_t(n), &count) || count > MOST) too_many(name);
  return count;
}

void ParameterLayout::add(Parameter p, bool continues) {
  p.offset = continues ? out_.back().offset + out_.back().count : aligned();
  if (p.count > MOST - p.offset) too_many(p.name);
  reserve(p.offset + p.count);
  out_.push_back(std::move(p));
}
size_t ParameterLayout::aligned() const { return (end_ + PARAMETER_ALIGN - 1) / PARAMETER_ALIGN * PARAMETER_ALIGN; }

void clear_gaps(Buffer& arena, const std::vector<Parameter>& parameters, size_t elements, LoopDType dt) {
  const size_t size = loop_dtype_size(dt);
  size_t end = 0;
  const auto clear_to = [&](size_t next) {
    if (next > end) arena.zero((next - end) * size, end * size);
  };
  for (const Parameter& p : parameters) {
    if (p.matrix >= 0) continue;
    clear_to(p.offset);
    end = p.offset + p.count;
  }
  clear_to(elements);
}

namespace {

// The fallback for devices without draw_normals: draws `count` values from element `first` on.
void draw_plainly(LoopDType dt, bool truncated, uint64_t seed, uint32_t index, size_t first, size_t count, double deviation,
                  uint8_t* out) {
  constexpr size_t longest = 4096;
  std::array<double, 2> pair{};
  std::vector<double> block;
  for (size_t j = first, end = first + count; j < end;) {
    block.clear();
    for (; j < end && block.size() < longest; j++) {
      if (truncated) {
        block.push_back(deviation * truncated_normal(seed, index, 0, uint32_t(j)));
        continue;
      }
      if (j == first || j % 2 == 0) pair = normal_pair(seed, index, 0, uint32_t(j) / 2);
      block.push_back(deviation * pair[j % 2]);
    }
    const std::vector<uint8_t> raw = rounded(dt, block);
    out = std::copy(raw.begin(), raw.end(), out);
  }
}

}  // namespace

void draw_initial(Device& device, LoopDType dt, const ParameterForm& form, uint32_t index, size_t count, uint64_t seed,
                  void* host_out) {
  auto* out = static_cast<uint8_t*>(host_out);
  if (form.initial == Initial::ones || form.initial == Initial::zeros) {
    const std::vector<uint8_t> raw = rounded(dt, std::vector<double>(count, form.initial == Initial::ones ? 1.0 : 0.0));
    std::copy(raw.begin(), raw.end(), out);
    return;
  }
  const bool truncated = form.initial == Initial::truncated_normal;
  const size_t part = count / form.deviations.size();
  for (size_t i = 0; i < form.deviations.size(); i++, out += part * loop_dtype_size(dt)) {
    const double deviation = form.deviations[i];
    if (!device.attempt(&LoopBackend::draw_normals, "first values", dt, int(truncated), seed, index, uint32_t(i * part),
                        int64_t(part), deviation, static_cast<void*>(out)))
      draw_plainly(dt, truncated, seed, index, i * part, part, deviation, out);
  }
}

std::vector<uint8_t> rounded(LoopDType dt, const std::vector<double>& values) {
  std::vector<uint8_t> out(values.size() * loop_dtype_size(dt));
  for (size_t i = 0; i < values.size(); i++) {
    if (dt == LOOP_F64) reinterpret_cast<double*>(out.data())[i] = values[i];
    else if (dt == LOOP_F32) reinterpret_cast<float*>(out.data())[i] = float(values[i]);
    else reinterpret_cast<uint16_t*>(out.data())[i] = float_to_bf16(float(values[i]));
  }
  return out;
}

std::vector<double> download_values(const Buffer& arena, LoopDType dt, size_t count, size_t element_offset) {
  if (dt != LOOP_BF16) return download_reals(arena, dt, count, element_offset);
  std::vector<uint16_t> bits(count);
  arena.download(bits.data(), count * sizeof(uint16_t), element_offset * sizeof(uint16_t));
  std::vector<double> out(count);
  for (size_t i = 0; i < count; i++) out[i] = double(bf16_to_float(bits[i]));
  return out;
}
void upload_values(Buffer& arena, LoopDType dt, const double* values, size_t count, size_t element_offset) {
  if (dt != LOOP_BF16) return upload_reals(arena, dt, values, count, element_offset);
  std::vector<uint16_t> bits(count);
  for (size_t i = 0; i < count; i++) bits[i] = float_to_bf16(float(values[i]));
  arena.upload(bits.data(), count * sizeof(uint16_t), element_offset * sizeof(uint16_t));
}

}  // namespace looplm
