// The optimizer's state on disk: safetensors files with the tensors first.NAME, second.NAME and master.NAME of every trained
// parameter. A rank of a parallel run writes ranges of elements as one-dimensional tensors first.NAME[begin:end].
#include <algorithm>
#include <cfloat>
#include <charconv>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "../numeric/half.h"
#include "json.h"  // defines: quote_briefly
#include "optimizer.h"
#include "safetensors.h"

namespace looplm {

namespace {

const char* const ROUNDS =
    "does not round to the model's parameter: load the checkpoint's parameters first, and from the same step";

std::string run_name(const std::string& name, size_t begin, size_t end) {
  return name + "[" + std::to_string(begin) + ":" + std::to_string(end) + "]";
}

int64_t read_step(const std::string& path, const SafetensorsFile& file) {
  const auto found = file.metadata().find("step");
  if (found == file.metadata().end()) refuse_file(path, "__metadata__ has no \"step\"; is this an optimizer's file?");
  const std::string& text = found->second;
  int64_t step = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (error != std::errc() || end != text.data() + text.size() || step < 0)
    refuse_file(path, "__metadata__: \"step\": " + json::quote_briefly(text) + " is not a count");
  return step;
}

void check_dtype(const std::string& path, const SafetensorsFile& file, const Model& model) {
  const auto dtype = file.metadata().find("dtype");
  if (dtype != file.metadata().end() && dtype->second == safetensors_dtype(model.dt)) return;
  refuse_file(path,
              "__metadata__: \"dtype\": " + (dtype == file.metadata().end() ? "is missing" : json::quote_briefly(dtype->second)) +
                  ", but the model is " + safetensors_dtype(model.dt));
}

bool any_negative(LoopDType type, const void* values, size_t count) {
  const auto* bytes = static_cast<const uint8_t*>(values);
  const size_t size = loop_dtype_size(type);
  for (size_t i = 0; i < count; i++)
    if (bytes[i * size + size - 1] & 0x80) return true;  // the sign bit
  return false;
}

// Whether the masters, rounded to bfloat16, are the parameters. For subnormal values the processor may have flushed to zero.
bool rounds_to(const uint16_t* parameter, const void* master, size_t count) {
  for (size_t i = 0; i < count; i++) {
    float value;
    std::memcpy(&value, static_cast<const uint8_t*>(master) + i * sizeof value, sizeof value);
    const bool normal = std::abs(value) >= FLT_MIN;
    if (normal ? float_to_bf16(value) != parameter[i] : std::abs(bf16_to_float(parameter[i])) > FLT_MIN) return false;
  }
  return true;
}

// A tensor of a file that holds elements [begin, end) of a parameter's state.
struct Run {
  const std::string* path;
  std::string tensor;  // its name in the file
  size_t begin, end;
  const SafetensorsEntry* entry;
};

// All files of one optimizer, and which tensor holds which elements.
class OptimizerFiles {
 public:
  OptimizerFiles(const Model& model, const std::vector<std::string>& paths) : model_(model), paths_(paths) {
    for (const std::string& path : paths_) {
      files_.push_back(std::make_unique<SafetensorsFile>(path));
      const int64_t step = read_step(path, *files_.back());
      check_dtype(path, *files_.back(), model);
      if (step != step_.value_or(step))
        refuse_file(path, "__metadata__: \"step\" is " + std::to_string(step) + ", and that of " + paths_[0] + " is " +
                              std::to_string(*step_) + ": they belong to different checkpoints");
      step_ = step;
      for (const auto& [name, entry] : files_.back()->tensors()) add(path, name, entry);
    }
  }

  int64_t step() const { return *step_; }
  // The tensors that together hold one state of a parameter, in element order. Throws INVALID_FILE if a part is missing or
  // stored twice.
  std::vector<Run> take(const std::string& name, const Parameter& p) {
    const auto found = runs_.find(name);
    if (found == runs_.end()) refuse_tensor(paths_[0], name, "is missing");
    std::vector<Run> runs = std::move(found->second);
    runs_.erase(found);
    std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
    size_t next = 0;
    for (Run& run : runs) {
      const bool whole = run.tensor == name;
      if (run.entry->dtype != safetensors_dtype(model_.real()))
        refuse_tensor(*run.path, run.tensor, "its dtype is not that of the model's gradients");
      if (whole ? run.entry->shape != p.shape
                : run.end > p.count || run.entry->shape != std::vector<int64_t>{int64_t(run.end - run.begin)})
        refuse_tensor(*run.path, run.tensor, "its shape is not the parameter's");
      if (whole) run.end = p.count;
      if (run.begin > next) refuse_tensor(*run.path, run_name(name, next, run.begin), "is missing; is a file of another rank?");
      if (run.begin < next) refuse_tensor(*run.path, run.tensor, "is stored twice");
      next = run.end;
    }
    if (next < p.count) refuse_tensor(paths_[0], run_name(name, next, p.count), "is missing; is a file of another rank?");
    return runs;
  }
  void refuse_the_rest() const {
    if (!runs_.empty()) refuse_tensor(*runs_.begin()->second[0].path, runs_.begin()->second[0].tensor, "is not this model's");
  }

 private:
  void add(const std::string& path, const std::string& tensor, const SafetensorsEntry& entry) {
    size_t begin = 0, end = 0;
    std::string name = tensor;
    const size_t open = tensor.rfind('['), colon = tensor.rfind(':');
    if (open != std::string::npos && tensor.back() == ']' && colon != std::string::npos && colon > open) {
      const char* text = tensor.data();
      const auto first = std::from_chars(text + open + 1, text + colon, begin);
      const auto second = std::from_chars(text + colon + 1, text + tensor.size() - 1, end);
      if (first.ec == std::errc() && first.ptr == text + colon && second.ec == std::errc() &&
          second.ptr == text + tensor.size() - 1 && begin < end)
        name = tensor.substr(0, open);
    }
    runs_[name].push_back({&path, tensor, begin, end, &entry});
  }

  const Model& model_;
  const std::vector<std::string> paths_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::optional<int64_t> step_;
  std::map<std::string, std::vector<Run>> runs_;  // by the name of the whole tensor
};

}  // namespace

void AdamW::save(const std::string& path) const {
  check_layout();
  refresh_masters();
  const size_t size = loop_dtype_size(model_->real());
  std::vector<SafetensorsOutput> tensors;
  for (const auto& state : states(*this))
    for (const Piece& piece : pieces_) {
      const Parameter& p = model_->trained()[piece.parameter];
      const std::string name = state.prefix + p.name;
      const bool whole = !parallel_;
      tensors.push_back({whole ? name : run_name(name, piece.first, piece.first + piece.count), safetensors_dtype(model_->real()),
                         whole ? p.shape : std::vector<int64_t>{int64_t(piece.count)},
                         [buffer = state.buffer, piece, size](uint8_t* out) {
                           buffer->download(out, piece.count * size, piece.state * size);
                         }});
    }
  write_safetensors(path, tensors, {{"step", std::to_string(steps_)}, {"dtype", safetensors_dtype(model_->dt)}});
}

void AdamW::load(const std::vector<std::string>& paths) {
  check_layout();
  const Model& model = *model_;
  const LoopDType real = model.real();
  const size_t size = loop_dtype_size(real);
  OptimizerFiles files(model, paths);
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Copy> copies;  // reserved before any data is copied: nothing may fail after the first copy
  for (const auto& [prefix, buffer] : states(*this)) {
    size_t next = 0;  // index of the next piece; pieces are in arena order, like the parameters
    for (size_t i = 0; i < model.trained().size(); i++) {
      const Parameter& p = model.trained()[i];
      const std::vector<Run> runs = files.take(prefix + p.name, p);
      std::vector<uint16_t> parameter;  // stored values, to check masters against
      std::vector<const Run*> checked;
      for (; next < pieces_.size() && pieces_[next].parameter == i; next++)
        for (const Run& run : runs) {
          const Piece& piece = pieces_[next];
          const size_t begin = std::max(run.begin, piece.first), end = std::min(run.end, piece.first + piece.count);
          if (begin >= end) continue;
          const auto* data = static_cast<const uint8_t*>(run.entry->data);
          copies.push_back(
              {buffer->at((piece.state + begin - piece.first) * size), data + (begin - run.begin) * size, (end - begin) * size});
          if (std::find(checked.begin(), checked.end(), &run) != checked.end()) continue;
          checked.push_back(&run);
          const size_t count = run.end - run.begin;
          if (first_not_finite(real, data, count) < count) refuse_tensor(*run.path, run.tensor, "has a value that is not finite");
          if (buffer == &second_ && any_negative(real, data, count)) refuse_tensor(*run.path, run.tensor, "has a negative value");
          if (buffer == &master_) {
            if (parameter.empty()) {
              parameter.resize(p.count);
              model.read_raw(p, parameter.data());
            }
            if (!rounds_to(parameter.data() + run.begin, data, count)) refuse_tensor(*run.path, run.tensor, ROUNDS);
          }
          check_checksum(*run.path, run.tensor, *run.entry);
        }
    }
  }
  files.refuse_the_rest();
  const Uninterrupted uninterrupted(*model.device);
  for (const Copy& c : copies) model.device->run(&LoopBackend::copy_in, "copy_in", c.to, c.from, c.bytes);
  steps_ = files.step();
  version_ = model.version();
  bounded_ = version_ - 1;
}

}  // namespace looplm
