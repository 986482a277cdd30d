// The safetensors format: a JSON header with names, dtypes, shapes and offsets, then the bytes. Files are memory-mapped. The
// whole header is checked against the file before any data is read.
//
//   8 bytes   length of the header, little-endian, at most 100 MB
//   header    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {"key": "text"}}
//   data      the tensors, row-major, without gaps
//
// looplm writes checksums (XXH64) into __metadata__, which other readers ignore:
//   looplm.xxh64          of the header's text, with zeros in place of these 16 digits
//   looplm.xxh64.tensors  of every tensor's bytes, in the order of the data
// The first one therefore covers the whole file. A file without checksums is read unchecked.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../backend.h"  // defines: LoopDType

namespace looplm {

struct SafetensorsEntry {
  std::string dtype;  // "F32", "BF16", "F16", "F64", "I64", ...
  std::vector<int64_t> shape;
  const void* data = nullptr;  // may be unaligned
  size_t bytes = 0;
  std::optional<uint64_t> checksum;  // of the bytes, as the header says; not verified yet
};

struct SafetensorsContents {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;  // without the checksums
};

// Parses and checks a file that is already in memory; the entries point into it. `path` is used in error messages. Throws
// INVALID_FILE.
SafetensorsContents parse_safetensors(const std::string& path, const void* file, size_t size);

// A whole file, mapped read-only. Do not truncate the file while it is mapped: reading past its end is a bus error.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws NOT_FOUND, INVALID_FILE
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  const void* data() const { return data_; }
  size_t size() const { return size_; }
  // Releases the pages that lie entirely in [from, from + bytes). They are read from disk again if needed.
  static void forget(const void* from, size_t bytes);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path)  // throws NOT_FOUND, or INVALID_FILE with the path and the wrong field
      : mapping_(path), contents_(parse_safetensors(path, mapping_.data(), mapping_.size())) {}
  const std::map<std::string, SafetensorsEntry>& tensors() const { return contents_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return contents_.metadata; }

 private:
  MappedFile mapping_;
  SafetensorsContents contents_;
};

struct SafetensorsOutput {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::function<void(uint8_t* out)> fill;  // writes the tensor's bytes; called once per tensor, in order
};
// Writes a file with checksums: to a temporary file next to `path`, then sync and rename. Only one tensor is in memory at a
// time. On failure, throws with the system's reason, leaves `path` unchanged and deletes the temporary file.
void write_safetensors(const std::string& path, const std::vector<SafetensorsOutput>& tensors,
                       const std::map<std::string, std::string>& metadata);

// Throw INVALID_FILE for a file, or for one of its tensors.
[[noreturn]] void refuse_file(const std::string& path, const std::string& what);
[[noreturn]] void refuse_tensor(const std::string& path, const std::string& tensor, const std::string& what);

// Refuses a tensor whose bytes do not match the header's checksum. found: the checksum of its bytes; without it, computed
// here.
void check_checksum(const std::string& path, const std::string& tensor, const SafetensorsEntry& entry, uint64_t found);
void check_checksum(const std::string& path, const std::string& tensor, const SafetensorsEntry& entry);

const char* safetensors_dtype(LoopDType type);
// The index of the first NaN or infinity among `count` floating-point values, or `count`. The values may be unaligned.
size_t first_not_finite(LoopDType type, const void* values, size_t count);

class Device;
class Model;
struct Architecture;
struct Quantization;
// Creates a model from safetensors files, as load_parameters reads them. Every value is read from disk once. dt unset:
// bfloat16 if all values in the files are bfloat16, else float32. added: names of parameters that the files lack; they get
// their initial values with seed 0.
std::shared_ptr<Model> load_model(std::shared_ptr<Device> device, std::optional<LoopDType> dt, const Architecture& config,
                                  Quantization quantization, const std::vector<std::string>& paths, bool quantized,
                                  const std::vector<std::string>& added = {});
// A file of another format (GGUF), whose header src/data/gguf.ts has parsed: where its tensors are.
struct StoredTensor {
  std::string name;  // of the parameter
  std::string type;  // F32, BF16, F16, F64, or a type of block_formats.h
  std::vector<int64_t> shape;
  uint64_t offset;        // in bytes from the start of the file
  int64_t head_rows = 0;  // rows per head if the file interleaves the two halves of each head; 0: rows are in the model's
                          // order
};
struct TensorFile {
  std::string path;
  std::vector<StoredTensor> tensors;
};
// Creates a model from such files, which together contain every parameter once. Codes and scales of blocks are kept if the
// model's quantization is the same: Q8_0 for 8 bits, Q4_0 for 4 bits, groups of 32. dt unset: bfloat16 if all matrices in the
// files are, else float32.
std::shared_ptr<Model> load_model(std::shared_ptr<Device> device, std::optional<LoopDType> dt, const Architecture& config,
                                  Quantization quantization, const std::vector<TensorFile>& files,
                                  const std::vector<std::string>& added = {});
// Fills every parameter from the files, which together must hold each exactly once and nothing unknown. F32, BF16, F16 and
// F64 are converted. Files of a tied model may repeat the embedding as lm_head.weight. Everything, including NaN and
// infinity, is checked before the first parameter changes; only an abort can leave a mix of old and new parameters. A
// quantized model quantizes what it reads. quantized: the files hold codes and scales with the model's bits and group, which
// are taken unchanged.
void load_parameters(Model& model, const std::vector<std::string>& paths, bool quantized = false);
// Saves as dtype "F32" or "BF16" (or "F64" for a float64 model). `metadata` is added to __metadata__. The matrices of a
// quantized model are saved as codes and scales, or with `dequantize` as the values that they represent.
void save_parameters(const Model& model, const std::string& path, const std::string& dtype, bool dequantize = false,
                     const std::map<std::string, std::string>& metadata = {});
// Load and save the adapter of a model in PEFT's format: tensors base_model.model.<name>.
void load_adapter(Model& model, const std::string& path);
void save_adapter(const Model& model, const std::string& path, const std::string& dtype,
                  const std::map<std::string, std::string>& metadata = {});

}  // namespace looplm
