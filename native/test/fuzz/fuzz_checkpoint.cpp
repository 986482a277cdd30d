// The input modifies a complete file of a tiny model before it is loaded: it changes header fields, drops or duplicates
// tensors, and flips bytes of values. Either the loader refuses the file with INVALID_FILE and has changed nothing, or every
// parameter is finite.
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "../../backends.h"
#include "../../engine/json.h"
#include "../../engine/looprpt.h"
#include "../../engine/moving_average.h"
#include "../../engine/optimizer.h"
#include "../../engine/safetensors.h"
#include "../small_architecture.h"
#include "fuzz.h"

namespace looplm::fuzz {

namespace {

// The bytes of the input, one after the other; zeros after its end.
struct Input {
  const uint8_t* data;
  size_t size, next = 0;
  uint8_t byte() { return next < size ? data[next++] : 0; }
  size_t word() {
    const size_t high = byte();
    return high << 8 | byte();
  }
  bool done() const { return next >= size; }
};

// The file to load.
struct TemporaryFile {
  ~TemporaryFile() { ::unlink(path.c_str()); }
  void write(const std::string& bytes) { std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes; }
  const std::string path = std::filesystem::temp_directory_path() / ("looplm-fuzz-" + std::to_string(::getpid()));
};

struct Tensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string bytes;
  int64_t begin_error = 0, end_error = 0;  // added to the offsets
};

struct Image {
  std::vector<Tensor> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::string extra;  // bytes after the last tensor
};

Image read(const std::string& path) {
  const SafetensorsFile file(path);
  Image image;
  for (const auto& [name, entry] : file.tensors())
    image.tensors.push_back({name, entry.dtype, entry.shape, std::string(static_cast<const char*>(entry.data), entry.bytes)});
  for (const auto& item : file.metadata()) image.metadata.push_back(item);
  return image;
}

std::string write(const Image& image) {
  std::string header = "{\"__metadata__\":{", data;
  for (size_t i = 0; i < image.metadata.size(); i++)
    header += (i ? "," : "") + json::quote(image.metadata[i].first) + ":" + json::quote(image.metadata[i].second);
  header += "}";
  for (const Tensor& t : image.tensors) {
    header += "," + json::quote(t.name) + ":{\"dtype\":" + json::quote(t.dtype) + ",\"shape\":[";
    for (size_t i = 0; i < t.shape.size(); i++) header += (i ? "," : "") + std::to_string(t.shape[i]);
    header += "],\"data_offsets\":[" + std::to_string(int64_t(data.size()) + t.begin_error) + ",";
    data += t.bytes;
    header += std::to_string(int64_t(data.size()) + t.end_error) + "]}";
  }
  header += "}";
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; i++) out[i] = char(uint64_t(header.size()) >> 8 * i);
  return out + header + data + image.extra;
}

void edit(Image& image, Input& input) {
  const uint8_t what = input.byte();
  if (image.tensors.empty()) return;
  Tensor& t = image.tensors[input.byte() % image.tensors.size()];
  const char* dtypes[] = {"F32", "BF16", "F16", "F64", "I64", "U8", "I8", "F8_E4M3", "X"};
  switch (what % 12) {
    case 0:  // a byte of a value
      if (!t.bytes.empty()) {
        const size_t place = input.word() % t.bytes.size();
        t.bytes[place] = char(input.byte());
      }
      return;
    case 1:
      t.dtype = dtypes[input.byte() % 9];
      return;
    case 2:
      if (t.shape.empty()) t.shape.push_back(input.byte());
      else t.shape[input.byte() % t.shape.size()] = int8_t(input.byte());
      return;
    case 3:
      if (input.byte() & 1) t.shape.push_back(1);
      else if (!t.shape.empty()) t.shape.pop_back();
      return;
    case 4:
      image.tensors.erase(image.tensors.begin() + (&t - image.tensors.data()));
      return;
    case 5:
      image.tensors.push_back(t);
      if (input.byte() & 1) image.tensors.back().name += char(input.byte() & 0x7F);
      return;
    case 6:
      t.begin_error = int8_t(input.byte());
      t.end_error = int8_t(input.byte());
      return;
    case 7:
      t.bytes.resize(input.byte(), '\x7F');
      return;
    case 8:  // twice the bytes in another dtype, which may or may not fit the shape
      t.bytes += t.bytes;
      t.dtype = dtypes[input.byte() % 9];
      return;
    case 9:
      if (image.metadata.empty() || (input.byte() & 1)) image.metadata.push_back({"step", std::to_string(input.byte())});
      else image.metadata[input.byte() % image.metadata.size()].second = std::string(1, char(input.byte() & 0x7F));
      return;
    case 10:
      image.extra.assign(input.byte() % 16, 'x');
      return;
    default:
      std::swap(t.bytes, image.tensors[input.byte() % image.tensors.size()].bytes);
  }
}

std::vector<std::string> values(const Model& model) {
  std::vector<std::string> all;
  for (const Parameter& p : model.parameters()) {
    std::string raw(p.count * loop_dtype_size(model.dt), '\0');
    model.read_raw(p, raw.data());
    for (const double value : model.read(p))
      if (!std::isfinite(value)) std::abort();
    all.push_back(raw);
  }
  return all;
}

// A quantized model, and the file of its codes and scales.
struct QuantizedSubject {
  std::shared_ptr<Model> model;
  Image image;

  QuantizedSubject(const std::shared_ptr<Device>& device, int bits) {
    model = std::make_shared<Model>(device, LOOP_F32, small_architecture({3, 32, 32, 1, 1, 1, 32, 1}), Quantization{bits, 32});
    model->initialize(7);
    const TemporaryFile file;
    save_parameters(*model, file.path, "F32");
    image = read(file.path);
  }

  void load(const std::string& path) {
    const std::vector<std::string> before = values(*model);
    try {
      load_parameters(*model, {path}, true);
      values(*model);
    } catch (const Error& error) {
      if (error.code != "INVALID_FILE" || values(*model) != before) std::abort();
    }
  }
};

// One kind of model with its optimizer, its moving average and the files that they write.
struct Subject {
  std::shared_ptr<Model> model, student;
  AdamW optimizer;
  MovingAverage average;
  Image images[3];  // parameters, optimizer, moving average

  Subject(const std::shared_ptr<Device>& device, LoopDType dt, bool tied)
      : model(make(device, dt, tied)), student(make(device, dt, tied)), optimizer(student), average(model, student) {
    const TemporaryFile file;
    save_parameters(*model, file.path, safetensors_dtype(dt));
    images[0] = read(file.path);
    optimizer.save(file.path);
    images[1] = read(file.path);
    average.save(file.path);
    images[2] = read(file.path);
  }

  static std::shared_ptr<Model> make(const std::shared_ptr<Device>& device, LoopDType dt, bool tied) {
    auto model = std::make_shared<Model>(device, dt, small_architecture({3, 2, 2, 1, 1, 1, 2, 1, tied}));
    model->initialize(7);
    return model;
  }

  void load(int kind, const std::string& path) {
    const std::vector<std::string> before = values(*model);
    const int64_t steps = optimizer.steps();
    try {
      if (kind == 0) load_parameters(*model, {path});
      else if (kind == 1) optimizer.load({path});
      else average.load(path);
      values(*model);
    } catch (const Error& error) {
      if (error.code != "INVALID_FILE" || values(*model) != before || optimizer.steps() != steps) std::abort();
    }
  }
};

}  // namespace

void checkpoint(const uint8_t* data, size_t size) {
  static const auto device = open_device("cpu", 1);
  static Subject subjects[] = {{device, LOOP_F32, false}, {device, LOOP_BF16, true}};
  Input input{data, size};
  const uint8_t choice = input.byte();
  static QuantizedSubject quantized[] = {{device, 8}, {device, 4}};
  Subject& subject = subjects[choice & 1];
  const int kind = (choice >> 1) % 3;
  const bool few_bits = choice & 0x80;
  Image image = few_bits ? quantized[choice & 1].image : subject.images[kind];
  for (int edits = 0; edits < 8 && !input.done(); edits++) edit(image, input);
  static TemporaryFile file;
  file.write(write(image));
  if (few_bits) quantized[choice & 1].load(file.path);
  else subject.load(kind, file.path);
}

}  // namespace looplm::fuzz
