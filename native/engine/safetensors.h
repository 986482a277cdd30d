// The safetensors format: a JSON header of names, dtypes, shapes and offsets, then the bytes. Files are memory-mapped, and
// everything in the header is checked against the file before a byte of data is read.
//
//   8 bytes   length of the header, little-endian, at most 100 MB
//   header    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {"key": "text"}}
//   data      the tensors, row-major, without holes
//
// Files that looplm writes have checksums (XXH64) in __metadata__, where other readers pass over them:
//   looplm.xxh64          of the header's text, with zeros for these 16 digits themselves
//   looplm.xxh64.tensors  of every tensor's bytes, in the order of the data
// So the first one stands for the whole file. A file without them is read unchecked.
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
  const void* data = nullptr;  // not necessarily aligned
  size_t bytes = 0;
  std::optional<uint64_t> checksum;  // of the bytes, which the header says but nobody has checked yet
};

struct SafetensorsContents {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;  // without the checksums
};

// The checks, on a file already in memory, which the entries point into. `path` is for the messages. Throws INVALID_FILE.
SafetensorsContents parse_safetensors(const std::string& path, const void* file, size_t size);

// A whole file, read-only. It must not be cut short while it is mapped: reading behind its end is a bus error.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws NOT_FOUND, INVALID_FILE
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  const void* data() const { return data_; }
  size_t size() const { return size_; }
  // The pages that lie wholly in [from, from + bytes) need not stay in memory; they are read again when they are needed.
  static void forget(const void* from, size_t bytes);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path)  // throws INVALID_FILE with the path and the field at fault, NOT_FOUND
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
  std::function<void(uint8_t* out)> fill;  // writes the tensor's bytes; called once, in the order of the tensors
};
// Writes, with checksums, to a temporary file beside `path`, syncs, renames. One tensor is in memory at a time. When it fails,
// with the system's reason, `path` is as it was and no temporary file is left.
void write_safetensors(const std::string& path, const std::vector<SafetensorsOutput>& tensors,
                       const std::map<std::string, std::string>& metadata);

// The error of a file that is not what it is read for, or of one of its tensors: INVALID_FILE.
[[noreturn]] void refuse_file(const std::string& path, const std::string& what);
[[noreturn]] void refuse_tensor(const std::string& path, const std::string& tensor, const std::string& what);

// Refuses a tensor whose bytes have another checksum than the header says; `found` is theirs.
void check_checksum(const std::string& path, const std::string& tensor, const SafetensorsEntry& entry, uint64_t found);
void check_checksum(const std::string& path, const std::string& tensor, const SafetensorsEntry& entry);

const char* safetensors_dtype(LoopDType type);
// The index of the first NaN or infinity among `count` floating-point values (which may be unaligned), or `count`.
size_t first_not_finite(LoopDType type, const void* values, size_t count);

class Device;
class Model;
struct Architecture;
struct Quantization;
// A model with the parameters of the files, as load_parameters reads them, and each value read from the disk once. Without dt
// its dtype is bfloat16 where all values of the files are, else float32. added: parameters that the files do not have; they begin
// as the description says, with seed 0.
std::shared_ptr<Model> load_model(std::shared_ptr<Device> device, std::optional<LoopDType> dt, const Architecture& config,
                                  Quantization quantization, const std::vector<std::string>& paths, bool quantized,
                                  const std::vector<std::string>& added = {});
// A file of another format, whose header somebody else has read (src/data/gguf.ts): where its tensors lie.
struct StoredTensor {
  std::string name;  // of the parameter
  std::string type;  // F32, BF16, F16, F64, or of block_formats.h
  std::vector<int64_t> shape;
  uint64_t offset;        // in bytes of the file
  int64_t head_rows = 0;  // rows per head whose two halves are interleaved; 0: the rows are in order
};
struct TensorFile {
  std::string path;
  std::vector<StoredTensor> tensors;
};
// The same from such files, which together hold each parameter once. Blocks keep their codes and scales where the model has the
// same (8 bits Q8_0, 4 bits Q4_0, in groups of 32). Without dt it is bfloat16 where all their matrices are, else float32.
std::shared_ptr<Model> load_model(std::shared_ptr<Device> device, std::optional<LoopDType> dt, const Architecture& config,
                                  Quantization quantization, const std::vector<TensorFile>& files,
                                  const std::vector<std::string>& added = {});
// Fills every parameter from the files (together they must hold each exactly once and nothing unknown). F32, BF16, F16 and F64
// convert. A tied model's files may repeat the embedding as lm_head.weight. Everything, NaN and infinity included, is checked
// before the first parameter changes; only an abort leaves the model with some parameters of each. A quantized model quantizes
// what it reads, or takes codes and scales as they are where the files are quantized with its bits and group.
void load_parameters(Model& model, const std::vector<std::string>& paths, bool quantized = false);
// dtype "F32" or "BF16" ("F64" from a float64 model). `metadata` is added to __metadata__. A quantized model's matrices are saved
// as codes and scales, or as the values that they stand for.
void save_parameters(const Model& model, const std::string& path, const std::string& dtype, bool dequantize = false,
                     const std::map<std::string, std::string>& metadata = {});
// The same of a model's adapter, in a file as PEFT writes it: base_model.model.<name>.
void load_adapter(Model& model, const std::string& path);
void save_adapter(const Model& model, const std::string& path, const std::string& dtype,
                  const std::map<std::string, std::string>& metadata = {});

}  // namespace looplm
