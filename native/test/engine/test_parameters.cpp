// Loading and saving parameters.
#include <cmath>
#include <cstring>

#include "claims.h"
#include "models.h"

namespace looplm::test {
namespace {

ENGINE_TEST(test_parameters, "parameters") {
  const Folder folder;
  const std::string path = folder / "model.safetensors";
  struct Trip {
    const char *from_device, *file, *to_device;
    LoopDType from, to;
    std::function<double(double)> round;
  };
  const auto same = [](double x) { return x; };
  const Trip trips[] = {
      {"cpu", "F32", "cpu", LOOP_F32, LOOP_F32, same},           {"cpu", "BF16", "cpu", LOOP_F32, LOOP_F32, to_bf16},
      {"cpu", "BF16", "cpu", LOOP_BF16, LOOP_BF16, same},        {"cpu", "F32", "cpu", LOOP_BF16, LOOP_BF16, same},
      {"cpu", "F32", "cpu", LOOP_F32, LOOP_BF16, to_bf16},       {"cpu", "BF16", "cpu", LOOP_BF16, LOOP_F32, same},
      {"cpu", "F32", "reference", LOOP_F32, LOOP_F64, same},     {"reference", "F64", "reference", LOOP_F64, LOOP_F64, same},
      {"reference", "F32", "cpu", LOOP_F64, LOOP_F32, to_f32},   {"reference", "F64", "cpu", LOOP_F64, LOOP_F32, to_f32},
      {"reference", "F64", "cpu", LOOP_F64, LOOP_BF16, to_bf16}, {"reference", "BF16", "reference", LOOP_F64, LOOP_F64, to_bf16},
  };
  for (const Trip& trip : trips)
    for (const bool tied : {false, true}) {
      const auto from = small_model(trip.from_device, trip.from, tied, 1), to = small_model(trip.to_device, trip.to, tied, 2);
      const uint64_t version = to->version();
      save_parameters(*from, path, trip.file);
      load_parameters(*to, {path});
      claim(std::string("a ") + safetensors_dtype(trip.from) + " model through a " + trip.file + " file into " +
                safetensors_dtype(trip.to) + " on " + trip.to_device + (tied ? ", tied" : ""),
            all_values(*to) == all_values(*from, trip.round) && to->version() > version &&
                SafetensorsFile(path).metadata() == std::map<std::string, std::string>{{"format", "pt"}} &&
                SafetensorsFile(path).tensors().count("lm_head.weight") == !tied);
    }

  const auto model = small_model("cpu", LOOP_F32), untouched = small_model("cpu", LOOP_F32, false, 5);
  const std::vector<uint8_t> before = all_raw(*untouched);
  const std::vector<SafetensorsOutput> good = outputs(*model, "F32", encode_f32);

  write_safetensors(path, outputs(*model, "F16", encode_f16), {});
  const auto half = small_model("cpu", LOOP_F32);
  load_parameters(*half, {path});
  claim("an F16 file into F32",
        all_values(*half) == all_values(*model, [](double x) { return double(f16_to_float(float_to_f16(float(x)))); }));

  {  // a header of odd length, so that nothing in the data is aligned
    save_parameters(*model, path, "F32");
    std::string file = contents(path);
    file.replace(file.find("looplm.xxh64\""), 6, "others");  // a changed header must have no checksum
    uint64_t header = 0;
    std::memcpy(&header, file.data(), sizeof header);
    file.insert(8 + header, " ");
    header++;
    std::memcpy(file.data(), &header, sizeof header);
    std::ofstream(folder / "odd.safetensors", std::ios::binary) << file;
    for (const LoopDType dt : {LOOP_F32, LOOP_BF16}) {
      const auto odd = small_model("cpu", dt, false, 9);
      load_parameters(*odd, {folder / "odd.safetensors"});
      claim(std::string("unaligned data loads into ") + safetensors_dtype(dt),
            all_values(*odd) == all_values(*model, [&](double x) { return dt == LOOP_BF16 ? to_bf16(x) : x; }));
    }
  }

  {  // a tensor with more elements than one conversion step handles
    SmallSizes config = small_config(true);
    config.vocabulary = 150'000, config.hidden = 2;
    const auto device = open_device("cpu", 2);
    Model from(device, LOOP_F32, small_architecture(config)), to(device, LOOP_BF16, small_architecture(config));
    from.initialize(3);
    save_parameters(from, path, "F32");
    load_parameters(to, {path});
    claim("a large tensor converts to its end", all_values(to) == all_values(from, to_bf16));
    std::vector<double> embedding = from.read(from.parameters()[0]);
    embedding[299'999] = NAN;
    from.write(from.parameters()[0], embedding.data());
    save_parameters(from, path, "F32");
    refuses("a NaN at the end of a large tensor", "INVALID_FILE", {"element 299999 is not finite as BF16"},
            [&] { load_parameters(to, {path}); });
  }

  const std::string second = folder / "second.safetensors";
  const auto shards = [&](size_t begin1, size_t end1, size_t begin2, size_t end2) {
    const auto part = [&](size_t a, size_t b) {
      return std::vector<SafetensorsOutput>(good.begin() + ptrdiff_t(a), good.begin() + ptrdiff_t(b));
    };
    write_safetensors(path, part(begin1, end1), {});
    write_safetensors(second, part(begin2, end2), {});
    load_parameters(*untouched, {path, second});
  };
  const size_t n = good.size();
  refuses("a tensor in two files", "INVALID_FILE", {"second.safetensors: tensor \"" + good[3].name + "\": is also in " + path},
          [&] { shards(0, 4, 3, n); });
  refuses("a missing tensor of two files", "INVALID_FILE", {"1 tensors are missing: \"" + good[3].name + "\""},
          [&] { shards(0, 3, 4, n); });
  refuses("many missing tensors", "INVALID_FILE",
          {std::to_string(n - 2) + " tensors are missing", "and " + std::to_string(n - 7) + " more"},
          [&] { shards(0, 1, 1, 2); });

  const auto load_spoiled = [&](const std::function<void(std::vector<SafetensorsOutput>&)>& spoil) {
    std::vector<SafetensorsOutput> tensors = good;
    spoil(tensors);
    write_safetensors(path, tensors, {});
    load_parameters(*untouched, {path});
  };
  refuses("an unknown tensor", "INVALID_FILE", {path, "1 tensors are not the model's: \"extra\""},
          [&] { load_spoiled([](auto& t) { t.push_back(output("extra", "F32", {1}, encode_f32({0}))); }); });
  refuses("a renamed tensor is missing and unknown", "INVALID_FILE",
          {"missing: \"" + good[2].name + "\"", "not the model's: \"other\""},
          [&] { load_spoiled([](auto& t) { t[2].name = "other"; }); });
  refuses("a transposed tensor", "INVALID_FILE", {good[0].name, "shape [6, 11], but the configuration asks for [11, 6]"}, [&] {
    load_spoiled([](auto& t) { t[0].shape = {6, 11}; });
  });
  refuses("a flattened tensor", "INVALID_FILE", {good[0].name, "shape [66]"},
          [&] { load_spoiled([](auto& t) { t[0].shape = {66}; }); });
  refuses("an integer tensor", "INVALID_FILE", {good[0].name, "dtype I32 cannot be a parameter"},
          [&] { load_spoiled([](auto& t) { t[0].dtype = "I32"; }); });
  for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)})
    refuses("a value that is not finite: " + std::to_string(bad), "INVALID_FILE",
            {"tensor \"" + good[n - 1].name + "\": element 7 is not finite"}, [&] {
              load_spoiled([&](auto& t) {
                std::vector<double> values(66, 1.0);
                values[7] = bad;
                t[n - 1] = output(t[n - 1].name, "F32", t[n - 1].shape, encode_f32(values));
              });
            });
  refuses("a value too large for the model's dtype", "INVALID_FILE",
          {"tensor \"" + good[0].name + "\": element 65 is not finite as F32"}, [&] {
            load_spoiled([](auto& t) {
              std::vector<double> values(66, 1.0);
              values[65] = 1e39;
              t[0] = output(t[0].name, "F64", t[0].shape, bytes_of(values));
            });
          });
  claim("a refused file changes no parameter", all_raw(*untouched) == before);
  shards(0, 4, 4, n);
  claim("two files together hold the model", all_raw(*untouched) == all_raw(*model));

  const auto tied = small_model("cpu", LOOP_F32, true);
  std::vector<SafetensorsOutput> repeated = outputs(*tied, "F32", encode_f32);
  repeated.push_back(repeated[0]);
  repeated.back().name = "lm_head.weight";
  write_safetensors(path, repeated, {});
  const auto tied_copy = small_model("cpu", LOOP_F32, true, 3);
  load_parameters(*tied_copy, {path});
  claim("a tied model's file may repeat the embedding", all_raw(*tied_copy) == all_raw(*tied));
  repeated.back() = output("lm_head.weight", "F32", {11, 6}, encode_f32(std::vector<double>(66, 1.0)));
  write_safetensors(path, repeated, {});
  refuses("a tied model's file with a separate head", "INVALID_FILE", {"lm_head.weight", "tie_word_embeddings"},
          [&] { load_parameters(*tied_copy, {path}); });

  refuses("no files", "INVALID_ARGUMENT", {"no file"}, [&] { load_parameters(*model, {}); });
  refuses("an F32 model is not saved as F64", "INVALID_ARGUMENT", {"not as \"F64\""},
          [&] { save_parameters(*model, path, "F64"); });
  refuses("a model is not saved as F16", "INVALID_ARGUMENT", {"not as \"F16\""}, [&] { save_parameters(*model, path, "F16"); });
}

}  // namespace
}  // namespace looplm::test
