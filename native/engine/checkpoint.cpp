// Reads and writes the model's parameters as safetensors files, and reads them from GGUF files.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>

#include "../numeric/half.h"
#include "block_formats.h"
#include "in_threads.h"
#include "json.h"  // defines: quote_briefly
#include "model.h"
#include "safetensors.h"
#include "xxh64.h"

namespace looplm {

namespace {

template <LoopDType>
struct Element;
template <>
struct Element<LOOP_F32> {
  using Bits = float;
  static float value(Bits bits) { return bits; }
  static Bits bits(double value) { return float(value); }
};
template <>
struct Element<LOOP_F64> {
  using Bits = double;
  static double value(Bits bits) { return bits; }
  static Bits bits(double value) { return value; }
};
template <>
struct Element<LOOP_BF16> {
  using Bits = uint16_t;
  static float value(Bits bits) { return bf16_to_float(bits); }
  static Bits bits(double value) { return float_to_bf16(float(value)); }  // rounds through float32, as PyTorch does
};
template <>
struct Element<LOOP_F16> {
  using Bits = uint16_t;
  static float value(Bits bits) { return f16_to_float(bits); }
  static Bits bits(double value) { return float_to_f16(float(value)); }
};

template <class From, class To>
void convert_elements(const uint8_t* src, uint8_t* dst, size_t count) {
  for (size_t i = 0; i < count; i++) {
    typename From::Bits in;
    std::memcpy(&in, src + i * sizeof in, sizeof in);  // tensors in a file may be unaligned
    const typename To::Bits out = To::bits(From::value(in));
    std::memcpy(dst + i * sizeof out, &out, sizeof out);
  }
}

template <class From>
void convert_from(LoopDType to, const uint8_t* src, uint8_t* dst, size_t count) {
  switch (to) {
    case LOOP_F32:
      return convert_elements<From, Element<LOOP_F32>>(src, dst, count);
    case LOOP_F64:
      return convert_elements<From, Element<LOOP_F64>>(src, dst, count);
    case LOOP_BF16:
      return convert_elements<From, Element<LOOP_BF16>>(src, dst, count);
    default:
      throw Error("INTERNAL", "convert", "a model has no dtype " + std::to_string(int(to)));
  }
}

void convert(LoopDType from, LoopDType to, const uint8_t* src, uint8_t* dst, size_t count) {
  switch (from) {
    case LOOP_F32:
      return convert_from<Element<LOOP_F32>>(to, src, dst, count);
    case LOOP_F64:
      return convert_from<Element<LOOP_F64>>(to, src, dst, count);
    case LOOP_BF16:
      return convert_from<Element<LOOP_BF16>>(to, src, dst, count);
    case LOOP_F16:
      return convert_from<Element<LOOP_F16>>(to, src, dst, count);
    default:
      throw Error("INTERNAL", "convert", "not a floating-point dtype " + std::to_string(int(from)));
  }
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (const int64_t n : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(n);
  return out + "]";
}

// The first five names, and the number of the others.
std::string list_names(const std::vector<std::string>& names) {
  constexpr size_t most = 5;
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), most); i++) out += (i ? ", " : "") + json::quote_briefly(names[i]);
  return names.size() > most ? out + " and " + std::to_string(names.size() - most) + " more" : out;
}

// One tensor and the file that holds it. head_rows: rows per attention head if the file interleaves the two halves of a head
// (row 0 of the first half, row 0 of the second, row 1 of the first, …); 0: rows are in the model's order.
struct Source {
  const std::string* path;
  const SafetensorsEntry* entry;
  int64_t head_rows = 0;
  // The row of the file that holds row `row` of the model.
  size_t row_in_file(size_t row) const {
    const size_t rows = size_t(head_rows);
    if (rows == 0) return row;
    const size_t i = row % rows;
    return row - i + (i < rows / 2 ? 2 * i : 2 * (i - rows / 2) + 1);
  }
};
using Sources = std::map<std::string, Source>;

Sources collect(const std::vector<std::string>& paths, const std::vector<std::unique_ptr<SafetensorsFile>>& files) {
  Sources sources;
  for (size_t i = 0; i < files.size(); i++)
    for (const auto& [name, entry] : files[i]->tensors()) {
      const auto [place, added] = sources.emplace(name, Source{&paths[i], &entry});
      if (!added) refuse_tensor(paths[i], name, "is also in " + *place->second.path);
    }
  return sources;
}

// Some writers store the embedding a second time as lm_head.weight. Accept that for a tied model only if both tensors are
// equal.
void drop_tied_head(Sources& sources, const std::string& name) {
  const auto head = sources.find("lm_head.weight"), embedding = sources.find(name);
  if (head == sources.end() || embedding == sources.end()) return;
  const SafetensorsEntry &a = *head->second.entry, &b = *embedding->second.entry;
  if (a.dtype != b.dtype || a.shape != b.shape || std::memcmp(a.data, b.data, a.bytes) != 0)
    refuse_tensor(*head->second.path, "lm_head.weight",
                  "differs from " + name + " although the model's embeddings are tied (tie_word_embeddings in config.json)");
  sources.erase(head);
}

// A tensor in a file, and which part of a parameter it holds. A quantized parameter is stored as two tensors, whose shapes no
// reader of plain weights mistakes for weights. Codes, `name`: 8 bits as I8 [out, in / group, group], or 4 bits as U8 [out,
// in / group, group / 2], where the low nibble holds the even element and each nibble is code + 8. Scales, `name_scale`: F32
// [out, in / group], or if asymmetric BF16 [out, in / group, 2] with (middle, scale).
struct WantedTensor {
  enum class Part { values, codes, scales };
  std::string name;
  const Parameter* parameter;
  Part part;
  std::vector<int64_t> shape;
};
struct Wanted {
  std::vector<WantedTensor> tensors;
  std::string owner, hint;
  std::vector<std::string> ignored;  // name endings of tensors that are skipped
  bool ignores(const std::string& name) const {
    return std::any_of(ignored.begin(), ignored.end(), [&](const std::string& end) { return name.ends_with(end); });
  }
};

Wanted wanted(const std::vector<Parameter>& parameters, const std::string& prefix, std::string owner, std::string hint) {
  Wanted out{{}, std::move(owner), std::move(hint), {}};
  for (const Parameter& p : parameters) out.tensors.push_back({prefix + p.name, &p, WantedTensor::Part::values, p.shape});
  return out;
}
// All parameters of a model. quantized: its matrices are stored as codes and scales.
Wanted all_of(const Model& model, bool quantized) {
  Wanted out = wanted(model.parameters(), "", "model", "does config.json belong to this checkpoint?");
  out.ignored = model.config.ignored;
  if (!quantized) return out;
  const int bits = model.quantization.bits, group = model.quantization.group;
  std::vector<WantedTensor> tensors;
  for (WantedTensor& t : out.tensors) {
    const Parameter* p = t.parameter;
    if (p->matrix < 0) {
      tensors.push_back(std::move(t));
      continue;
    }
    const int64_t rows = p->shape[0], groups = p->shape[1] / group;
    tensors.push_back({t.name, p, WantedTensor::Part::codes, {rows, groups, int64_t(group) * bits / 8}});
    std::vector<int64_t> scales{rows, groups};
    if (model.quantization.asymmetric) scales.push_back(2);
    tensors.push_back({t.name + "_scale", p, WantedTensor::Part::scales, std::move(scales)});
  }
  out.tensors = std::move(tensors);
  return out;
}
Wanted adapter_of(const Model& model) {
  if (!model.adapter()) throw Error("INVALID_ARGUMENT", "adapter", "the model has no adapter: add one with addAdapter");
  return wanted(model.trained(), "base_model.model.", "adapter",
                "does adapter_config.json belong to this file, and to this model?");
}

void check_names(const Wanted& wanted, const Sources& sources, const std::vector<std::string>& paths) {
  std::vector<std::string> missing, unknown;
  std::set<std::string> known;
  for (const WantedTensor& t : wanted.tensors) {
    known.insert(t.name);
    if (!sources.count(t.name)) missing.push_back(t.name);
  }
  for (const auto& source : sources)
    if (!known.count(source.first) && !wanted.ignores(source.first)) unknown.push_back(source.first);
  if (missing.empty() && unknown.empty()) return;
  std::string what;
  if (!missing.empty()) what = std::to_string(missing.size()) + " tensors are missing: " + list_names(missing);
  if (!unknown.empty())
    what += (what.empty() ? "" : "; ") + std::to_string(unknown.size()) + " tensors are not the " + wanted.owner +
            "'s: " + list_names(unknown);
  refuse_file(paths.size() == 1 ? paths[0] : paths[0] + " and its other " + std::to_string(paths.size() - 1) + " files",
              what + " (" + wanted.hint + ")");
}

const char* codes_dtype(int bits) { return bits == 8 ? "I8" : "U8"; }
LoopDType scales_dtype(const Quantization& q) { return q.asymmetric ? LOOP_BF16 : LOOP_F32; }

// How the elements of a tensor are encoded in a file.
struct Encoding {
  LoopDType dtype = LOOP_F32;           // of one element, or of the values that a block expands to
  const BlockFormat* blocks = nullptr;  // NULL: single values, not blocks
  size_t bytes(size_t elements) const {
    return blocks ? elements / blocks->elements * blocks->bytes : elements * loop_dtype_size(dtype);
  }
  bool is(LoopDType type) const { return !blocks && dtype == type; }
  void decode(LoopDType to, const uint8_t* src, uint8_t* dst, size_t count) const {
    if (is(to)) std::memcpy(dst, src, bytes(count));
    else if (!blocks) convert(dtype, to, src, dst, count);
    else {
      std::vector<float> values(blocks->elements);
      for (size_t i = 0; i < count; i += blocks->elements, src += blocks->bytes) {
        blocks->expand(src, values.data());
        convert(LOOP_F32, to, reinterpret_cast<const uint8_t*>(values.data()), dst + i * loop_dtype_size(to), values.size());
      }
    }
  }
};
Encoding encoding_of(const Source& source, const std::string& name) {
  for (const LoopDType type : {LOOP_F32, LOOP_BF16, LOOP_F16, LOOP_F64})
    if (source.entry->dtype == safetensors_dtype(type)) return {type};
  if (const BlockFormat* blocks = block_format(source.entry->dtype)) return {LOOP_F32, blocks};
  refuse_tensor(*source.path, name, "dtype " + source.entry->dtype + " cannot be a parameter; F32, BF16, F16 and F64 can");
}

// A piece of a tensor while it loads. Every thread holds one, in the file's encoding and converted.
constexpr size_t piece_elements = size_t(1) << 18;

// Calls visit(first, values, count) with the elements [first, first + count) converted to `to`, in pieces of whole rows of
// `row` elements. Values that need no conversion are passed without a copy. The pages of each piece are released after its
// visit, so that the file is never in memory as a whole next to the model. The checksum is computed in the same pass, so
// every value is read from disk once. block: scratch memory, reused from tensor to tensor.
using Block = std::vector<uint8_t>;
template <class Visit>
void visit_blocks(Block& block, const Source& tensor, const Encoding& from, const std::string& name, LoopDType to, size_t row,
                  Visit visit) {
  const SafetensorsEntry& entry = *tensor.entry;
  const auto& shape = entry.shape;
  size_t total = 1;
  for (const int64_t n : shape) total *= size_t(n);
  const size_t columns = shape.size() < 2 ? 1 : size_t(shape.back());
  const size_t unit = tensor.head_rows > 0 ? size_t(tensor.head_rows) * columns : row, size = loop_dtype_size(to);
  const bool direct = from.is(to) && tensor.head_rows == 0;
  Xxh64 checksum;
  const size_t longest = std::max<size_t>(1, piece_elements / unit) * unit;
  if (!direct) block.resize(std::max(block.size(), std::min(total, longest) * size));
  for (size_t first = 0; first < total; first += longest) {
    const size_t count = std::min(longest, total - first), bytes = from.bytes(count);
    const uint8_t* source = static_cast<const uint8_t*>(entry.data) + from.bytes(first);
    if (entry.checksum) checksum.update(source, bytes);
    if (tensor.head_rows > 0)
      for (size_t r = 0; r < count / columns; r++)
        from.decode(to, source + from.bytes(tensor.row_in_file(r) * columns), block.data() + r * columns * size, columns);
    else if (!direct) from.decode(to, source, block.data(), count);
    visit(first, direct ? source : block.data(), count);
    MappedFile::forget(source, bytes);
  }
  check_checksum(*tensor.path, name, entry, checksum.digest());
}

// Refuses NaN and infinity. values: elements [first, first + count) of a tensor, converted from encoding `from` to `to`.
void require_finite(const Source& source, const std::string& name, const Encoding& from, LoopDType to, size_t first,
                    const void* values, size_t count) {
  const size_t bad = first_not_finite(to, values, count);
  if (bad < count)
    refuse_tensor(*source.path, name,
                  "element " + std::to_string(first + bad) + " is not finite" +
                      (from.is(to) ? "" : std::string(" as ") + safetensors_dtype(to)));
}

// Refuses a tensor of the wrong shape or dtype.
void check_form(const Model& model, const WantedTensor& t, const Source& source) {
  if (source.entry->shape != t.shape)
    refuse_tensor(*source.path, t.name,
                  "shape " + shape_text(source.entry->shape) + ", but the configuration asks for " + shape_text(t.shape));
  const std::string& dtype = source.entry->dtype;
  const std::string asked = t.part == WantedTensor::Part::codes ? codes_dtype(model.quantization.bits)
                                                                : safetensors_dtype(scales_dtype(model.quantization));
  if (t.part == WantedTensor::Part::values) encoding_of(source, t.name);
  else if (dtype != asked)
    refuse_tensor(*source.path, t.name, "dtype " + dtype + ", but quantization_config of config.json asks for " + asked);
}

void check_values(const Model& model, const WantedTensor& t, const Source& source, Block& block) {
  // every code is a valid weight
  if (t.part == WantedTensor::Part::codes) return check_checksum(*source.path, t.name, *source.entry);
  const LoopDType to = t.part == WantedTensor::Part::scales ? scales_dtype(model.quantization) : model.dt;
  const Encoding from = encoding_of(source, t.name);
  visit_blocks(block, source, from, t.name, to, 1, [&](size_t first, const void* values, size_t count) {
    require_finite(source, t.name, from, to, first, values, count);
  });
}

// Whether a quantized model can take the codes of a file's blocks unchanged: same bits, groups of 32, symmetric.
bool same_codes(const Quantization& q, const Encoding& from) {
  return from.blocks && q.group == 32 && !q.asymmetric && from.blocks->name == (q.bits == 8 ? "Q8_0" : "Q4_0");
}
// Loads such codes and scales without requantizing.
void load_codes(Model& model, const Parameter& p, const std::string& name, const Source& source, const Encoding& from) {
  const size_t columns = size_t(p.shape[1]), groups = columns / 32, row_bytes = from.bytes(columns);
  const size_t code_bytes = size_t(4 * model.quantization.bits), unit = source.head_rows > 0 ? size_t(source.head_rows) : 1;
  const size_t longest = std::max<size_t>(1, piece_elements / (unit * columns)) * unit, total = size_t(p.shape[0]);
  const auto split = model.quantization.bits == 8 ? split_q8_0 : split_q4_0;
  std::vector<uint8_t> codes(std::min(longest, total) * groups * code_bytes);
  std::vector<float> scales(std::min(longest, total) * groups);
  for (size_t first = 0; first < total; first += longest) {
    const size_t rows = std::min(longest, total - first);
    const uint8_t* begin = static_cast<const uint8_t*>(source.entry->data) + first * row_bytes;
    for (size_t r = 0; r < rows; r++) {
      const uint8_t* row = begin + source.row_in_file(r) * row_bytes;
      for (size_t g = 0; g < groups; g++) {
        const size_t at = r * groups + g;
        scales[at] = split(row + g * from.blocks->bytes, &codes[at * code_bytes]);
        if (!std::isfinite(scales[at]))
          refuse_tensor(*source.path, name, "the scale of block " + std::to_string(first * groups + at) + " is not finite");
      }
    }
    model.quantized().write_codes(p, int64_t(first), int64_t(rows), codes.data());
    model.quantized().write_scales(p, int64_t(first), int64_t(rows), scales.data());
    MappedFile::forget(begin, rows * row_bytes);
  }
}

void load_values(Model& model, const WantedTensor& t, const Source& source, Block& block) {
  const Parameter& p = *t.parameter;
  const Encoding from = encoding_of(source, t.name);
  const Parameter* head = p.role == Role::embedding && !p.adapter ? model.quantized().tied_head() : nullptr;
  const bool keep = same_codes(model.quantization, from);
  if (keep && p.matrix >= 0) return load_codes(model, p, t.name, source, from);
  if (keep && head) load_codes(model, *head, t.name, source, from);
  const size_t row = p.matrix >= 0 || head || from.blocks ? size_t(p.shape.back()) : 1;
  visit_blocks(block, source, from, t.name, model.dt, row, [&](size_t first, const void* values, size_t count) {
    require_finite(source, t.name, from, model.dt, first, values, count);
    if (p.matrix >= 0) return model.quantized().quantize_rows(p, int64_t(first / row), int64_t(count / row), values);
    if (head && !keep) model.quantized().quantize_rows(*head, int64_t(first / row), int64_t(count / row), values);
    const size_t size = loop_dtype_size(model.dt);
    void* to = static_cast<char*>(model.writable_data(p)) + first * size;
    model.device->run(&LoopBackend::copy_in, "copy_in", to, values, count * size);
  });
}

void load_tensor(Model& model, const WantedTensor& t, const Source& source, Block& block) {
  const Parameter& p = *t.parameter;
  const int64_t rows = p.shape[0];
  switch (t.part) {
    case WantedTensor::Part::values:
      return load_values(model, t, source, block);
    case WantedTensor::Part::codes:
      check_checksum(*source.path, t.name, *source.entry);
      model.quantized().write_codes(p, 0, rows, source.entry->data);
      break;
    case WantedTensor::Part::scales: {
      std::vector<float> scales(source.entry->bytes / 4);
      std::memcpy(scales.data(), source.entry->data, source.entry->bytes);  // tensors in a file may be unaligned
      const LoopDType of = scales_dtype(model.quantization);
      require_finite(source, t.name, {of}, of, 0, scales.data(), source.entry->bytes / loop_dtype_size(of));
      check_checksum(*source.path, t.name, *source.entry);
      model.quantized().write_scales(p, 0, rows, scales.data());
      break;
    }
  }
  MappedFile::forget(source.entry->data, source.entry->bytes);
}

// fresh: the model was just created and is dropped after an error, so values are checked while they are copied. Otherwise
// everything is checked first, and a refused file leaves the model unchanged.
void load_tensors(Model& model, const Wanted& wanted, const Sources& sources, const std::vector<std::string>& paths, bool fresh) {
  check_names(wanted, sources, paths);
  for (const WantedTensor& t : wanted.tensors) check_form(model, t, sources.at(t.name));
  std::vector<Block> blocks(model.device->threads());
  const auto each = [&](auto f) {
    in_threads(blocks.size(), wanted.tensors.size(), [&](size_t i, size_t thread) {
      const WantedTensor& t = wanted.tensors[i];
      f(model, t, sources.at(t.name), blocks[thread]);
    });
  };
  if (!fresh) each(check_values);
  if (!wanted.tensors.empty()) model.unshare(*wanted.tensors.front().parameter);
  each(load_tensor);
  for (const WantedTensor& t : wanted.tensors) model.touch(*t.parameter);
}

void save_tensors(const Model& model, const Wanted& wanted, const std::string& path, const std::string& dtype,
                  std::map<std::string, std::string> metadata) {
  const LoopDType to = dtype == "F32" ? LOOP_F32 : dtype == "BF16" ? LOOP_BF16 : LOOP_F64;
  if (dtype != safetensors_dtype(to) || (to == LOOP_F64 && model.dt != LOOP_F64))
    throw Error(
        "INVALID_ARGUMENT", "save",
        "parameters are saved as F32 or BF16, those of a float64 model also as F64, not as " + json::quote_briefly(dtype));
  std::vector<SafetensorsOutput> tensors;
  for (const WantedTensor& t : wanted.tensors) {
    const Parameter& p = *t.parameter;
    const auto copy = [](const auto& values, uint8_t* out) { std::memcpy(out, values.data(), values.size() * sizeof values[0]); };
    if (t.part == WantedTensor::Part::codes)
      tensors.push_back({t.name, codes_dtype(model.quantization.bits), t.shape,
                         [&, copy](uint8_t* out) { copy(model.quantized().read_codes(p), out); }});
    else if (t.part == WantedTensor::Part::scales)
      tensors.push_back({t.name, safetensors_dtype(scales_dtype(model.quantization)), t.shape,
                         [&, copy](uint8_t* out) { copy(model.quantized().read_scales(p), out); }});
    else
      tensors.push_back({t.name, dtype, t.shape, [&model, &p, to](uint8_t* out) {
                           if (model.dt == to) return model.read_raw(p, out);
                           std::vector<uint8_t> raw(p.count * loop_dtype_size(model.dt));
                           model.read_raw(p, raw.data());
                           convert(model.dt, to, raw.data(), out, p.count);
                         }});
  }
  metadata["format"] = "pt";  // transformers refuses a file without this
  write_safetensors(path, tensors, metadata);
}

}  // namespace

namespace {

using Files = std::vector<std::unique_ptr<SafetensorsFile>>;

Files open_files(const std::vector<std::string>& paths) {
  if (paths.empty()) throw Error("INVALID_ARGUMENT", "load", "no file to load parameters from");
  Files files;
  for (const std::string& path : paths) files.push_back(std::make_unique<SafetensorsFile>(path));
  return files;
}

Wanted without(Wanted wanted, const std::vector<std::string>& names) {
  std::erase_if(wanted.tensors,
                [&](const WantedTensor& t) { return std::find(names.begin(), names.end(), t.name) != names.end(); });
  return wanted;
}

void load_files(Model& model, const std::vector<std::string>& paths, const Files& files, bool quantized, bool fresh,
                const std::vector<std::string>& added = {}) {
  Sources sources = collect(paths, files);
  if (model.config.tied) drop_tied_head(sources, model.embedding().name);
  load_tensors(model, without(all_of(model, quantized), added), sources, paths, fresh);
}

// The tensors of a file whose header another reader parsed (GGUF), after checking that each of them lies within the file.
std::vector<SafetensorsEntry> entries_of(const TensorFile& file, const MappedFile& mapping) {
  std::vector<SafetensorsEntry> entries;
  for (const StoredTensor& t : file.tensors) {
    SafetensorsEntry entry{t.type, t.shape};
    const Encoding encoding = encoding_of({&file.path, &entry}, t.name);
    size_t elements = 1;
    for (const int64_t n : t.shape)
      if (n < 1 || __builtin_mul_overflow(elements, size_t(n), &elements) || elements > mapping.size() * 4)
        refuse_tensor(file.path, t.name, "shape " + shape_text(t.shape) + " is more than the file holds");
    const int64_t rows = t.shape.empty() ? 0 : t.shape[0];
    if (encoding.blocks && (t.shape.size() != 2 || size_t(t.shape[1]) % encoding.blocks->elements != 0))
      refuse_tensor(file.path, t.name, "rows of shape " + shape_text(t.shape) + " are not multiples of a block of " + t.type);
    if (t.head_rows < 0 || (t.head_rows > 0 && (t.head_rows % 2 != 0 || rows % t.head_rows != 0)))
      refuse_tensor(file.path, t.name, "its rows are not a multiple of the head size " + std::to_string(t.head_rows));
    entry.bytes = encoding.bytes(elements);
    if (t.offset > mapping.size() || entry.bytes > mapping.size() - t.offset)
      refuse_tensor(file.path, t.name, "ends past the end of the file (is it truncated?)");
    entry.data = static_cast<const uint8_t*>(mapping.data()) + t.offset;
    entries.push_back(std::move(entry));
  }
  return entries;
}

// The dtype for a model from files: bfloat16 if all values are bfloat16 (codes and scales do not count), else float32, which
// holds every F16 value exactly.
LoopDType stored_dtype(const Files& files) {
  bool some = false;
  for (const auto& file : files)
    for (const auto& [name, entry] : file->tensors()) {
      if (entry.dtype == "BF16") some = true;
      else if (entry.dtype[0] == 'F' && !(name.ends_with("_scale") && file->tensors().count(name.substr(0, name.size() - 6))))
        return LOOP_F32;
    }
  return some ? LOOP_BF16 : LOOP_F32;
}

}  // namespace

std::shared_ptr<Model> load_model(std::shared_ptr<Device> device, std::optional<LoopDType> dt, const Architecture& config,
                                  Quantization quantization, const std::vector<std::string>& paths, bool quantized,
                                  const std::vector<std::string>& added) {
  const Files files = open_files(paths);
  auto model = std::make_shared<Model>(std::move(device), dt.value_or(stored_dtype(files)), config, quantization);
  load_files(*model, paths, files, quantized, true, added);
  for (const std::string& name : added) model->initialize(model->parameter(name), 0);
  return model;
}
std::shared_ptr<Model> load_model(std::shared_ptr<Device> device, std::optional<LoopDType> dt, const Architecture& config,
                                  Quantization quantization, const std::vector<TensorFile>& files,
                                  const std::vector<std::string>& added) {
  if (files.empty()) throw Error("INVALID_ARGUMENT", "load", "no file to load parameters from");
  std::vector<std::unique_ptr<MappedFile>> mappings;
  std::vector<std::vector<SafetensorsEntry>> entries;
  std::vector<std::string> paths;
  bool half = false, other = false;
  for (const TensorFile& file : files) {
    mappings.push_back(std::make_unique<MappedFile>(file.path));
    entries.push_back(entries_of(file, *mappings.back()));
    paths.push_back(file.path);
    for (const SafetensorsEntry& e : entries.back()) {
      if (e.dtype == "BF16") half = true;
      else if (e.shape.size() > 1) other = true;
    }
  }
  auto model =
      std::make_shared<Model>(std::move(device), dt.value_or(half && !other ? LOOP_BF16 : LOOP_F32), config, quantization);
  Sources sources;
  for (size_t f = 0; f < files.size(); f++)
    for (size_t i = 0; i < entries[f].size(); i++) {
      const StoredTensor& t = files[f].tensors[i];
      if (!sources.emplace(t.name, Source{&paths[f], &entries[f][i], t.head_rows}).second)
        refuse_tensor(paths[f], t.name, "is stored twice");
    }
  load_tensors(*model, without(all_of(*model, false), added), sources, paths, true);
  for (const std::string& name : added) model->initialize(model->parameter(name), 0);
  return model;
}
void load_parameters(Model& model, const std::vector<std::string>& paths, bool quantized) {
  load_files(model, paths, open_files(paths), quantized, false);
}
void save_parameters(const Model& model, const std::string& path, const std::string& dtype, bool dequantize,
                     const std::map<std::string, std::string>& metadata) {
  save_tensors(model, all_of(model, model.quantization && !dequantize), path, dtype, metadata);
}

void load_adapter(Model& model, const std::string& path) {
  const Wanted wanted = adapter_of(model);
  const std::vector<std::string> paths{path};
  const Files files = open_files(paths);
  load_tensors(model, wanted, collect(paths, files), paths, false);
}
void save_adapter(const Model& model, const std::string& path, const std::string& dtype,
                  const std::map<std::string, std::string>& metadata) {
  save_tensors(model, adapter_of(model), path, dtype, metadata);
}

}  // namespace looplm
