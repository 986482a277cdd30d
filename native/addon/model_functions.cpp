// Models: creation, files, parameters and gradients.
#include "../engine/merge.h"
#include "../engine/safetensors.h"  // defines: load_model, save_parameters
#include "../engine/xxh64.h"
#include "architecture_input.h"
#include "functions.h"
#include "input.h"
#include "output.h"

namespace looplm::addon {

namespace {

using HeldModel = Held<Model>;

HeldModel read_model(const Napi::CallbackInfo& info, size_t index = 0) {
  return Input(info, index, "model").object<Model>(Kind::model);
}

Quantization read_quantization(const Input& in) {
  if (in.missing()) return {};
  const Input activations = in["activations"];
  return {int(in["bits"].integer(4, 8)), int(in["groupSize"].integer(1, 1 << 20)), in["head"].missing() || in["head"].flag(),
          activations.missing()          ? Activations::by_device
          : activations.text() == "int8" ? Activations::int8
                                         : Activations::as_they_are,
          !in["asymmetric"].missing() && in["asymmetric"].flag()};
}

std::vector<std::string> read_texts(const Input& list) {
  std::vector<std::string> out;
  for (uint32_t i = 0; i < list.length(); i++) out.push_back(list[i].text());
  return out;
}

// Reads a NativeTensorFile of src/native.ts.
TensorFile read_tensor_file(const Input& in) {
  TensorFile file{in["path"].text(), {}};
  const Input list = in["tensors"];
  for (uint32_t i = 0; i < list.length(); i++) {
    const Input t = list[i];
    constexpr int64_t most = int64_t(1) << 53;
    file.tensors.push_back({t["name"].text(), t["type"].text(), t["shape"].integers(), uint64_t(t["offset"].integer(0, most)),
                            t["headRows"].missing() ? 0 : t["headRows"].integer(0, most)});
  }
  return file;
}

// Returns a promise of the model that `make` returns on the executor's thread.
template <class Make>
Napi::Value model_promise(const Napi::CallbackInfo& info, const std::shared_ptr<Executor>& executor, Make make) {
  return executor->submit(info.Env(), nullptr, [executor, make = std::move(make)]() -> Executor::Finish {
    return [executor, model = make()](Napi::Env env) { return make_handle(env, {Kind::model, executor, model}); };
  });
}

// Runs `work` on the executor's thread; returns a promise without a value.
template <class Work>
Napi::Value run(const Napi::CallbackInfo& info, const std::shared_ptr<Executor>& executor, Work work) {
  return executor->submit(info.Env(), nullptr, [work = std::move(work)]() -> Executor::Finish {
    work();
    return [](Napi::Env env) {
      report_memory(env);
      return env.Undefined();
    };
  });
}

Napi::Value model_create(const Napi::CallbackInfo& info) {
  const auto context = Input(info, 0, "context").object<Executor>(Kind::context);
  const Architecture config = read_architecture(Input(info, 1, "architecture"));
  const LoopDType dtype = Input(info, 2, "dtype").dtype();
  const uint64_t seed = uint64_t(Input(info, 3, "seed").integer(0, int64_t(1) << 53));
  const Quantization quantization = read_quantization(Input(info, 4, "quantization"));
  return model_promise(info, context.object, [device = context->device(), config, dtype, seed, quantization] {
    auto model = std::make_shared<Model>(device, dtype, config, quantization);
    model->initialize(seed);
    return model;
  });
}

Napi::Value model_load(const Napi::CallbackInfo& info) {
  const auto context = Input(info, 0, "context").object<Executor>(Kind::context);
  const Architecture config = read_architecture(Input(info, 1, "architecture"));
  const Input named(info, 2, "dtype"), list(info, 3, "paths");
  const auto dtype = named.missing() ? std::nullopt : std::optional(named.dtype());
  std::vector<std::string> paths;
  for (uint32_t i = 0; i < list.length(); i++) paths.push_back(list[i].text());
  const Quantization quantization = read_quantization(Input(info, 4, "quantization"));
  const bool quantized = Input(info, 5, "quantized").flag();
  const std::vector<std::string> added = read_texts(Input(info, 6, "added"));
  return model_promise(info, context.object, [device = context->device(), config, dtype, paths, quantization, quantized, added] {
    return load_model(device, dtype, config, quantization, paths, quantized, added);
  });
}
Napi::Value model_load_tensors(const Napi::CallbackInfo& info) {
  const auto context = Input(info, 0, "context").object<Executor>(Kind::context);
  const Architecture config = read_architecture(Input(info, 1, "architecture"));
  const Input named(info, 2, "dtype");
  const auto dtype = named.missing() ? std::nullopt : std::optional(named.dtype());
  const Input list(info, 3, "files");
  std::vector<TensorFile> files;
  for (uint32_t i = 0; i < list.length(); i++) files.push_back(read_tensor_file(list[i]));
  const Quantization quantization = read_quantization(Input(info, 4, "quantization"));
  const std::vector<std::string> added = read_texts(Input(info, 5, "added"));
  return model_promise(info, context.object, [device = context->device(), config, dtype, files, quantization, added] {
    return load_model(device, dtype, config, quantization, files, added);
  });
}
Napi::Value dtype_of(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), loop_dtype_name(read_model(info).object->dt));
}

// The checksums of the other files in the folder; src/files/folder-files.ts writes and reads them.
std::map<std::string, std::string> read_files(const Input& files) { return {{"looplm.sha256", files.text()}}; }

Napi::Value model_save(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  const std::string path = Input(info, 1, "path").text(), dtype = Input(info, 2, "dtype").text();
  const bool dequantize = Input(info, 3, "dequantize").flag();
  const auto files = read_files(Input(info, 4, "files"));
  return run(info, model.executor,
             [model = model.object, path, dtype, dequantize, files] { save_parameters(*model, path, dtype, dequantize, files); });
}
Napi::Value save_adapter_of(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  const std::string path = Input(info, 1, "path").text(), dtype = Input(info, 2, "dtype").text();
  const auto files = read_files(Input(info, 3, "files"));
  return run(info, model.executor, [model = model.object, path, dtype, files] { save_adapter(*model, path, dtype, files); });
}

// Names and shapes of parameters, copied now, because the model may change before `Finish` runs.
Executor::Finish parameter_list(const std::vector<Parameter>& parameters) {
  return [parameters](Napi::Env env) {
    Napi::Array array = Napi::Array::New(env, parameters.size());
    for (uint32_t i = 0; i < parameters.size(); i++) {
      Napi::Object parameter = Napi::Object::New(env);
      parameter.Set("name", parameters[i].name);
      parameter.Set("shape", number_array(env, parameters[i].shape));
      array.Set(i, parameter);
    }
    report_memory(env);
    return array;
  };
}

Napi::Value add_adapter(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  const Input in(info, 1, "options");
  AdapterOptions options;
  options.rank = in["rank"].integer(1, int64_t(1) << 20);
  options.alpha = in["alpha"].number();
  const Input modules = in["modules"];
  for (uint32_t i = 0; i < modules.length(); i++) options.modules.push_back(modules[i].text());
  options.per_loop = in["perLoop"].flag();
  options.shift_rank = in["shiftRank"].integer(0, int64_t(1) << 20);
  const uint64_t seed = uint64_t(in["seed"].integer(0, int64_t(1) << 53));
  return model.executor->submit(info.Env(), nullptr, [model = model.object, options, seed]() -> Executor::Finish {
    model->add_adapter(options, seed);
    return parameter_list(model->trained());
  });
}
Napi::Value remove_adapter(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  return run(info, model.executor, [model = model.object] { model->remove_adapter(); });
}
Napi::Value load_adapter_of(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  const std::string path = Input(info, 1, "path").text();
  return run(info, model.executor, [model = model.object, path] { load_adapter(*model, path); });
}
Napi::Value merge(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  return model_promise(info, model.executor, [model = model.object] { return std::shared_ptr<Model>(merged(*model)); });
}

Napi::Value clone(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  return model_promise(info, model.executor, [model = model.object] { return std::shared_ptr<Model>(model->clone()); });
}

Napi::Value copy_parameters(const Napi::CallbackInfo& info) {
  const HeldModel to = read_model(info, 0), from = read_model(info, 1);
  if (to.executor != from.executor) throw Error("INVALID_ARGUMENT", "looplm", "both models must be on the same device");
  return run(info, to.executor, [to = to.object, from = from.object] { to->copy_parameters_from(*from); });
}

// A checksum of all parameters, including the adapter's; equal for equal bits.
Napi::Value checksum(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  return model.executor->submit(info.Env(), nullptr, [model = model.object]() -> Executor::Finish {
    Xxh64 sum;
    std::vector<uint8_t> raw;
    const auto add = [&](const std::vector<Parameter>& parameters) {
      for (const Parameter& p : parameters) {
        raw.resize(p.count * loop_dtype_size(model->dt));
        model->read_raw(p, raw.data());
        sum.update(raw.data(), raw.size());
      }
    };
    add(model->parameters());
    if (model->adapter()) add(model->trained());
    return [text = checksum_text(sum.digest())](Napi::Env env) { return Napi::String::New(env, text); };
  });
}

Napi::Value parameters(const Napi::CallbackInfo& info) { return parameter_list(read_model(info)->parameters())(info.Env()); }

Napi::Value read(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  const std::string name = Input(info, 1, "name").text();
  return model.executor->submit(info.Env(), nullptr, [model = model.object, name]() -> Executor::Finish {
    return [values = Reals(model->read(model->parameter(name)), model->dt)](Napi::Env env) { return values.array(env); };
  });
}

Napi::Value write(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  const std::string name = Input(info, 1, "name").text();
  const std::vector<double> values = Input(info, 2, "values").doubles();
  return run(info, model.executor, [model = model.object, name, values] {
    const Parameter& parameter = model->parameter(name);
    if (values.size() != parameter.count)
      throw Error("INVALID_SHAPE", "looplm",
                  name + " has " + std::to_string(parameter.count) + " elements, got " + std::to_string(values.size()));
    model->write(parameter, values.data());
  });
}

Napi::Value read_gradient(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  const std::string name = Input(info, 1, "name").text();
  return model.executor->submit(info.Env(), nullptr, [model = model.object, name]() -> Executor::Finish {
    return [values = Reals(model->read_gradient(model->parameter(name)), model->dt)](Napi::Env env) { return values.array(env); };
  });
}

Napi::Value read_gradients(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  return model.executor->submit(info.Env(), nullptr, [model = model.object]() -> Executor::Finish {
    struct Gradient {
      std::string name;
      Reals values;
    };
    auto gradients = std::make_shared<std::vector<Gradient>>();
    for (const Parameter& p : model->trained()) gradients->push_back({p.name, Reals(model->read_gradient(p), model->dt)});
    return [gradients](Napi::Env env) {
      Napi::Array array = Napi::Array::New(env, gradients->size());
      for (uint32_t i = 0; i < gradients->size(); i++) {
        Napi::Object gradient = Napi::Object::New(env);
        gradient.Set("name", (*gradients)[i].name);
        gradient.Set("values", (*gradients)[i].values.array(env));
        array.Set(i, gradient);
      }
      return array;
    };
  });
}

Napi::Value zero_gradients(const Napi::CallbackInfo& info) {
  const HeldModel model = read_model(info);
  return run(info, model.executor, [model = model.object] { model->zero_gradients(); });
}

}  // namespace

void add_model_functions(Napi::Env env, Napi::Object exports) {
  add<model_create>(env, exports, "modelCreate");
  add<model_load>(env, exports, "modelLoad");
  add<model_load_tensors>(env, exports, "modelLoadTensors");
  add<dtype_of>(env, exports, "modelDType");
  add<model_save>(env, exports, "modelSave");
  add<add_adapter>(env, exports, "modelAddAdapter");
  add<remove_adapter>(env, exports, "modelRemoveAdapter");
  add<save_adapter_of>(env, exports, "modelSaveAdapter");
  add<load_adapter_of>(env, exports, "modelLoadAdapter");
  add<merge>(env, exports, "modelMerge");
  add<clone>(env, exports, "modelClone");
  add<copy_parameters>(env, exports, "modelCopyParameters");
  add<parameters>(env, exports, "modelParameters");
  add<checksum>(env, exports, "modelChecksum");
  add<read>(env, exports, "modelRead");
  add<write>(env, exports, "modelWrite");
  add<read_gradient>(env, exports, "modelReadGradient");
  add<read_gradients>(env, exports, "modelReadGradients");
  add<zero_gradients>(env, exports, "modelZeroGradients");
}

}  // namespace looplm::addon
