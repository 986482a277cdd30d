// safetensors files: malformed ones are refused with the field's name, values survive writing and reading, and a failed write
// leaves nothing behind.
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstring>
#include <limits>

#include "../../engine/xxh64.h"
#include "claims.h"
#include "files.h"

namespace looplm::test {
namespace {

struct Header {
  const char *name, *text;
  size_t data_bytes;
  const char* says;  // part of the error message
};

const Header malformed[] = {
    // the JSON itself
    {"an empty header", "", 0, "does not start with '{'"},
    {"white space in front", " {}", 0, "does not start with '{'"},
    {"an array for a header", "[]", 0, "does not start with '{'"},
    {"a byte order mark", "\xEF\xBB\xBF{}", 0, "does not start with '{'"},
    {"an object that does not end", "{", 0, "expected a string at byte 1"},
    {"an object without its closing brace", R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]})", 1, "expected ',' or '}'"},
    {"text after the end", "{}x", 0, "unexpected text after the end"},
    {"a second object after the end", "{}{}", 0, "unexpected text after the end"},
    {"a NUL byte among the padding", nullptr, 0, "unexpected text after the end"},
    {"a trailing comma in the header", R"({"__metadata__":{},})", 0, "expected a string"},
    {"a comma without a member", "{,}", 0, "expected a string"},
    {"a missing colon", R"({"a" {}})", 0, "expected ':'"},
    {"an unquoted key", "{a:{}}", 0, "expected a string"},
    {"a single-quoted key", "{'a':{}}", 0, "expected a string"},
    {"a key that is a number", "{1:{}}", 0, "expected a string"},
    {"a comment", "{/**/}", 0, "expected a string"},
    {"a string that does not end", R"({"a)", 0, "closing quote"},
    {"a string that ends in a backslash", R"({"a\)", 0, "unknown escape"},
    {"an unknown escape", R"({"\x":{}})", 0, "unknown escape"},
    {"a control character in a name", "{\"a\nb\":{}}", 0, "control character"},
    {"a cut \\u escape", R"({"\u00)", 0, "four hexadecimal digits"},
    {"a \\u escape with a letter too far", R"({"\u00g0":{}})", 0, "four hexadecimal digits"},
    {"a low surrogate alone", R"({"\udc00":{}})", 0, "low surrogate"},
    {"a high surrogate alone", R"({"\ud800":{}})", 0, "high surrogate"},
    {"a high surrogate before a letter", R"({"\ud800\u0041":{}})", 0, "high surrogate"},
    {"a UTF-8 continuation alone", "{\"\x80\":{}}", 0, "invalid UTF-8"},
    {"a cut UTF-8 character", "{\"\xE2\x82\":{}}", 0, "invalid UTF-8"},
    {"a UTF-8 character at the very end", "{\"\xF0\x9F\x98", 0, "invalid UTF-8"},
    {"an overlong UTF-8 slash of 2 bytes", "{\"\xC0\xAF\":{}}", 0, "invalid UTF-8"},
    {"an overlong UTF-8 slash of 3 bytes", "{\"\xE0\x80\xAF\":{}}", 0, "invalid UTF-8"},
    {"an overlong UTF-8 character of 4 bytes", "{\"\xF0\x80\x80\x80\":{}}", 0, "invalid UTF-8"},
    {"a UTF-8 surrogate", "{\"\xED\xA0\x80\":{}}", 0, "invalid UTF-8"},
    {"a character above U+10FFFF", "{\"\xF4\x90\x80\x80\":{}}", 0, "invalid UTF-8"},
    // the tensors
    {"a tensor that is a number", R"({"a":1})", 0, "tensor \"a\": expected an object"},
    {"a tensor that is null", R"({"a":null})", 0, "tensor \"a\": expected an object"},
    {"a tensor that is an array", R"({"a":[]})", 0, "tensor \"a\": expected an object"},
    {"a tensor without fields", R"({"a":{}})", 0, "tensor \"a\": dtype is missing"},
    {"a missing dtype", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "dtype is missing"},
    {"a missing shape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "shape is missing"},
    {"missing offsets", R"({"a":{"dtype":"U8","shape":[1]}})", 1, "data_offsets is missing"},
    {"an unknown field", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"stride":[1]}})", 1,
     "tensor \"a\": \"stride\": unknown field"},
    {"a field in capitals", R"({"a":{"DTYPE":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "unknown field"},
    {"a field that comes twice", R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1,
     "\"shape\" comes twice"},
    {"a tensor that comes twice",
     R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2,
     "\"a\" comes twice"},
    {"a tensor that comes twice by an escape",
     R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2,
     "\"a\" comes twice"},
    {"an unknown dtype", R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", 4, "dtype \"F31\" is not known"},
    {"a dtype in small letters", R"({"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}})", 4, "dtype \"f32\" is not known"},
    {"an empty dtype", R"({"a":{"dtype":"","shape":[1],"data_offsets":[0,4]}})", 4, "dtype \"\" is not known"},
    {"a dtype that is a number", R"({"a":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})", 4, "\"dtype\": expected a string"},
    {"a shape that is a number", R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1, "\"shape\": expected an array"},
    {"a shape with a string", R"({"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})", 1,
     "\"shape\": expected a non-negative integer"},
    {"a negative dimension", R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1,
     "\"shape\": expected a non-negative integer"},
    {"two negative dimensions", R"({"a":{"dtype":"U8","shape":[-1,-1],"data_offsets":[0,1]}})", 1, "non-negative integer"},
    {"a fractional dimension", R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "without fraction"},
    {"a dimension with an exponent", R"({"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}})", 1,
     "without fraction or exponent"},
    {"a dimension that starts with 0", R"({"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}})", 1, "starts with 0"},
    {"a dimension with a plus", R"({"a":{"dtype":"U8","shape":[+1],"data_offsets":[0,1]}})", 1, "non-negative integer"},
    {"a dimension of 2^63", R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]}})", 1, "above 2^63 - 1"},
    {"a dimension of fifty digits",
     R"({"a":{"dtype":"U8","shape":[99999999999999999999999999999999999999999999999999],"data_offsets":[0,1]}})", 1,
     "above 2^63 - 1"},
    {"a product of 2^64", R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
     "product of shape overflows"},
    {"a product that overflows by its dtype", R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0,
     "product of shape overflows"},
    {"a product that overflows beside a 0", R"({"a":{"dtype":"U8","shape":[4294967296,0,4294967296],"data_offsets":[0,0]}})", 0,
     "product of shape overflows"},
    {"a trailing comma in a shape", R"({"a":{"dtype":"U8","shape":[1,],"data_offsets":[0,1]}})", 1, "non-negative integer"},
    {"a shape that does not end", R"({"a":{"dtype":"U8","shape":[1)", 1, "expected ',' or ']'"},
    {"a nested shape", R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "non-negative integer"},
    {"a NaN for a dimension", R"({"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}})", 1, "non-negative integer"},
    // the offsets
    {"one offset", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "must be two integers"},
    {"no offset", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[]}})", 1, "must be two integers"},
    {"three offsets", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1, "\"data_offsets\": more than 2 entries"},
    {"offsets that are an object", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":{}}})", 1,
     "\"data_offsets\": expected an array"},
    {"a negative offset", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})", 1,
     "\"data_offsets\": expected a non-negative integer"},
    {"offsets in the wrong order", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "end before they begin"},
    {"an offset behind the data", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1, "cut short"},
    {"an offset far behind the data",
     R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[9223372036854775806,9223372036854775807]}})", 1, "cut short"},
    {"a length above the shape's", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,2]}})", 2,
     "span 2 bytes, but shape and dtype need 1"},
    {"a length below the shape's", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,2]}})", 2,
     "span 2 bytes, but shape and dtype need 4"},
    {"bytes for an empty shape", R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,1]}})", 1, "need 0"},
    {"a scalar without bytes", R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,0]}})", 0, "need 4"},
    {"tensors that overlap",
     R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3,
     "tensor \"b\": data_offsets overlap those of tensor \"a\""},
    {"two names for the same bytes",
     R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2,
     "overlap"},
    {"an empty tensor inside another",
     R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})", 2,
     "overlap"},
    {"a hole between tensors",
     R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})", 3,
     "tensor \"b\": no tensor covers the 1 bytes"},
    {"a hole in front", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2,
     "tensor \"a\": no tensor covers the 1 bytes"},
    {"bytes behind the last tensor", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 3,
     "no tensor covers the last 2 bytes"},
    {"data without tensors", "{}", 4, "no tensor covers the last 4 bytes"},
    // the metadata
    {"metadata that is a string", R"({"__metadata__":"x"})", 0, "__metadata__: expected an object"},
    {"metadata that is null", R"({"__metadata__":null})", 0, "__metadata__: expected an object"},
    {"metadata with a number", R"({"__metadata__":{"step":1}})", 0, "__metadata__: \"step\": expected a string"},
    {"metadata with an object", R"({"__metadata__":{"a":{}}})", 0, "__metadata__: \"a\": expected a string"},
    {"a metadata key that comes twice", R"({"__metadata__":{"a":"1","a":"2"}})", 0, "__metadata__: the key \"a\" comes twice"},
    {"metadata that comes twice", R"({"__metadata__":{},"__metadata__":{}})", 0, "comes twice"},
};

ENGINE_TEST(test_malformed_headers, "safetensors: malformed headers") {
  for (const Header& header : malformed) {
    const std::string text = header.text ? std::string(header.text) : std::string("{}\0 ", 4);
    refuses(std::string("refused: ") + header.name, "INVALID_FILE", {"the.file: ", header.says},
            [&] { parse(image(text, header.data_bytes)); });
  }

  const auto length = [](uint64_t value) {
    std::string out = image("{}", 0);
    std::memcpy(out.data(), &value, sizeof value);
    return out;
  };
  refuses("refused: an empty file", "INVALID_FILE", {"has 0 bytes"}, [] { parse(""); });
  refuses("refused: a file of 7 bytes", "INVALID_FILE", {"has 7 bytes"}, [] { parse(std::string(7, '\0')); });
  refuses("refused: a header length of 0", "INVALID_FILE", {"does not start with '{'"}, [&] { parse(length(0)); });
  refuses("refused: a header longer than the file", "INVALID_FILE", {"more than the file has left (2)"},
          [&] { parse(length(3)); });
  refuses("refused: a header above 100 MB", "INVALID_FILE", {"limit of 100 MB"}, [&] { parse(length(100'000'001)); });
  refuses("refused: a header of 100 MB that is not there", "INVALID_FILE", {"more than the file has left"},
          [&] { parse(length(100'000'000)); });
  refuses("refused: a header length of 2^64 - 1", "INVALID_FILE", {"limit of 100 MB"}, [&] { parse(length(UINT64_MAX)); });
  refuses("refused: a header length of 2^64 - 8", "INVALID_FILE", {"limit of 100 MB"}, [&] { parse(length(UINT64_MAX - 7)); });
  refuses("refused: a million brackets", "INVALID_FILE", {"\"shape\": expected a non-negative integer"},
          [] { parse(image(R"({"a":{"shape":)" + std::string(1'000'000, '['), 0)); });
  refuses("refused: a million braces", "INVALID_FILE", {"expected a string"},
          [] { parse(image(std::string(1'000'000, '{'), 0)); });
  refuses("refused: a shape of 65 dimensions", "INVALID_FILE", {"\"shape\": more than 64 entries"}, [] {
    std::string shape = "1";
    for (int i = 0; i < 64; i++) shape += ",1";
    parse(image(R"({"a":{"dtype":"U8","shape":[)" + shape + R"(],"data_offsets":[0,1]}})", 1));
  });

  // A header that is cut off at any byte is refused.
  const std::string good = R"({"__metadata__":{"k":"v\u00e9"},"a":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]}})";
  size_t refused = 0;
  for (size_t n = 0; n < good.size(); n++) try {
      parse(image(good.substr(0, n), 2));
    } catch (const Error& error) {
      refused += error.code == "INVALID_FILE";
    }
  claim("refused: every prefix of a good header", refused == good.size() && parse(image(good, 2)).tensors.size() == 1);
}

ENGINE_TEST(test_long_names_in_messages, "safetensors: long names in messages") {
  const std::string name(1'000'000, 'x');
  try {
    parse(image("{\"" + name + "\":1}", 0));
    claim("a message cuts a long name", false);
  } catch (const Error& error) {
    claim("a message cuts a long name", std::strlen(error.what()) < 300, error.what());
  }
}

ENGINE_TEST(test_good_headers, "safetensors: good headers") {
  const SafetensorsContents empty = parse(image("{}", 0));
  claim("accepted: no tensors", empty.tensors.empty() && empty.metadata.empty());

  const SafetensorsContents spaced =
      parse(image("{ \"b\" :\t{ \"data_offsets\" : [ 4 , 6 ] ,\n\"shape\":[ ],\r\"dtype\":\"BF16\"}, "
                  "\"a\":{\"dtype\":\"F32\",\"shape\":[1,1],"
                  "\"data_offsets\":[0,4]} }     ",
                  6));
  claim("accepted: fields and tensors in any order, white space, a scalar",
        spaced.tensors.size() == 2 && spaced.tensors.at("b").shape.empty() && spaced.tensors.at("b").bytes == 2 &&
            spaced.tensors.at("a").shape == std::vector<int64_t>{1, 1});

  const SafetensorsContents zero = parse(image(
      R"({"a":{"dtype":"F32","shape":[0,4294967296],"data_offsets":[2,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"c":{"dtype":"F64","shape":[3,0],"data_offsets":[0,0]}})",
      2));
  claim("accepted: tensors without elements", zero.tensors.size() == 3 && zero.tensors.at("a").bytes == 0);

  const SafetensorsContents text =
      parse(image(R"({"__metadata__":{"\"\\\/\b\f\n\r\t":"\u0041\u00e9\u20AC\ud83d\ude00é€😀"}})", 0));
  claim("accepted: escapes and UTF-8 in metadata", text.metadata.at("\"\\/\b\f\n\r\t") == "Aé€😀é€😀");
}

// ---- Files

ENGINE_TEST(test_files, "safetensors: files") {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  write_safetensors(path,
                    {output("w\"\n\\é", "F32", {2, 1}, bytes_of<float>({1.5f, -2})), output("s", "U8", {}, {7}),
                     output("none", "F64", {0, 3}, {})},
                    {{"format", "pt"}, {"k\"", "v\n"}});
  {
    const SafetensorsFile file(path);
    float w[2];
    std::memcpy(w, file.tensors().at("w\"\n\\é").data, sizeof w);
    claim("a file is read as it was written",
          file.tensors().size() == 3 && w[0] == 1.5f && w[1] == -2 && file.tensors().at("s").shape.empty() &&
              *static_cast<const uint8_t*>(file.tensors().at("s").data) == 7 && file.tensors().at("none").bytes == 0 &&
              file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"k\"", "v\n"}});
  }
  const std::string first = contents(path);
  uint64_t header = 0;
  std::memcpy(&header, first.data(), sizeof header);
  claim("the header is padded with spaces to 8 bytes", header % 8 == 0 && first.size() == 8 + header + 9);
  claim("the first tensor's bytes follow the header",
        std::memcmp(first.data() + 8 + header, bytes_of<float>({1.5f, -2}).data(), 8) == 0);
  struct stat status;
  ::stat(path.c_str(), &status);
  const mode_t mask = ::umask(0);
  ::umask(mask);
  claim("a file has the permissions that the umask leaves", (status.st_mode & 0777) == (0666 & ~mask));
  claim("no temporary file is left after a write", folder.names().size() == 1);

  refuses("a failing tensor stops the write", "NON_FINITE", {"stop"}, [&] {
    write_safetensors(
        path, {output("a", "U8", {1}, {1}), {"b", "U8", {1}, [](uint8_t*) { throw Error("NON_FINITE", "test", "stop"); }}}, {});
  });
  claim("a failing tensor leaves the old file and no other", contents(path) == first && folder.names().size() == 1);

  // Simulates a full disk by a limit on file sizes.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit limit;
  ::getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{4096, limit.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  refuses("a full disk is an error with the system's reason and what helps", "INVALID_FILE",
          {path, "cannot be written: the file would be larger than the limit", "ulimit -f", "EFBIG"},
          [&] { write_safetensors(path, {output("a", "U8", {100'000}, std::vector<uint8_t>(100'000))}, {}); });
  ::setrlimit(RLIMIT_FSIZE, &limit);
  claim("a full disk leaves the old file and no other", contents(path) == first && folder.names().size() == 1);

  refuses("a folder that does not exist", "NOT_FOUND", {"No such file or directory"},
          [&] { write_safetensors(folder / "no/a.safetensors", {}, {}); });
  refuses("a file for a folder", "INVALID_FILE", {"cannot be created: a part of the path is a file"},
          [&] { write_safetensors(path + "/b", {}, {}); });
  if (::geteuid() != 0) {  // root can write everywhere
    ::chmod(folder.path.c_str(), 0500);
    refuses("a read-only folder", "INVALID_FILE", {"cannot be created: permission denied"},
            [&] { write_safetensors(path, {}, {}); });
    ::chmod(folder.path.c_str(), 0700);
  }
  refuses("a folder in the file's place", "INVALID_FILE", {"cannot be replaced: it is a folder"},
          [&] { write_safetensors(folder.path, {}, {}); });
  ::mkfifo((folder / "pipe").c_str(), 0600);
  refuses("a pipe is not waited for", "INVALID_FILE", {"not a regular file"}, [&] { SafetensorsFile(folder / "pipe"); });
  refuses("a folder is not a file", "INVALID_FILE", {"not a regular file"}, [&] { SafetensorsFile{folder.path}; });
  refuses("a file that does not exist", "NOT_FOUND", {"nothing.safetensors: cannot be opened"},
          [&] { SafetensorsFile(folder / "nothing.safetensors"); });
  std::ofstream(folder / "empty").flush();
  refuses("a file of 0 bytes", "INVALID_FILE", {"empty: the file has 0 bytes"}, [&] { SafetensorsFile(folder / "empty"); });
  refuses("an unknown dtype is not written", "INVALID_ARGUMENT", {"unknown dtype"},
          [&] { write_safetensors(path, {output("a", "F31", {1}, {1})}, {}); });
}

// ---- Checksums

ENGINE_TEST(test_xxh64, "safetensors: xxh64") {
  // Values of the reference implementation (xxhash 4.0.1 for Python) for the bytes i * 37 + 11 mod 256.
  const std::pair<size_t, uint64_t> known[] = {{0, 0xef46db3751d8e999},   {1, 0xf592c0c7639c4cb6},   {3, 0x22c08528601d4f27},
                                               {4, 0xfb1e5cf2f1ae4d95},   {7, 0x5613ac510496c04e},   {8, 0x57cb2b7521f3e21a},
                                               {14, 0x393648aa0a97d46f},  {31, 0xe4a0e629e519a4ae},  {32, 0xcc6b8aaada790b2d},
                                               {33, 0x35ec49850475a832},  {63, 0xbf9f0ba3cf95b28a},  {64, 0x155ccce4bf32befc},
                                               {100, 0x4826e367566ea023}, {1000, 0x128da10cfbdc59d9}};
  std::vector<uint8_t> bytes(1000);
  for (size_t i = 0; i < bytes.size(); i++) bytes[i] = uint8_t(i * 37 + 11);
  bool right = true, split = true;
  for (const auto& [count, checksum] : known) right &= xxh64(bytes.data(), count) == checksum;
  for (size_t first = 0; first <= 100; first++)
    for (size_t second = first; second <= 100; second++) {
      Xxh64 hash;
      hash.update(bytes.data(), first);
      hash.update(bytes.data() + first, second - first);
      hash.update(bytes.data() + second, 100 - second);
      split &= hash.digest() == 0x4826e367566ea023;
    }
  claim("XXH64 is that of the reference implementation", right);
  claim("XXH64 does not depend on how the bytes come", split);
  claim("a checksum is printed with all its digits", checksum_text(0x0123456789abcdef) == "0123456789abcdef");
}

ENGINE_TEST(test_checksums, "safetensors: checksums") {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  write_safetensors(path, {output("a", "U8", {3}, {1, 2, 3}), output("none", "U8", {0}, {}), output("b", "U8", {2}, {4, 5})},
                    {{"step", "12"}});
  const std::string good = contents(path);
  // What a reader gets from the file after all checks, in a form that can be compared.
  const auto read = [](const std::string& file) {
    const std::vector<char> exact(file.begin(), file.end());
    const SafetensorsContents found = parse_safetensors("the.file", exact.data(), exact.size());
    std::map<std::string, std::string> out;
    for (const auto& [name, entry] : found.tensors) {
      check_checksum("the.file", name, entry);
      out[name + entry.dtype + std::to_string(entry.shape[0])] = std::string(static_cast<const char*>(entry.data), entry.bytes);
    }
    const auto step = found.metadata.find("step");
    out["step"] = step == found.metadata.end() ? "" : step->second;
    return out;
  };
  const auto truth = read(good);
  claim("a file of ours is read with its checksums", truth.size() == 4 && truth.at("bU82") == "\4\5" && truth.at("step") == "12");

  size_t refused = 0, same = 0;
  for (size_t bit = 0; bit < 8 * good.size(); bit++) {
    std::string damaged = good;
    damaged[bit / 8] = char(damaged[bit / 8] ^ 1 << bit % 8);
    try {
      same += read(damaged) == truth;
    } catch (const Error& error) {
      refused += error.code == "INVALID_FILE";
    }
  }
  claim("a flipped bit anywhere is refused, or nothing is read of it", refused + same == 8 * good.size() && same < 128,
        std::to_string(refused) + " refused, " + std::to_string(same) + " the same, of " + std::to_string(8 * good.size()));
  const auto spoiled = [&](const std::string& what, const std::string& with) {
    std::string damaged = good;
    damaged.replace(damaged.find(what), what.size(), with);
    return damaged;
  };
  refuses("another value in the header", "INVALID_FILE", {"the header has another checksum", "Restore the file"},
          [&] { read(spoiled("\"12\"", "\"13\"")); });
  refuses("two tensors whose names are exchanged", "INVALID_FILE", {"the header has another checksum"},
          [&] { read(spoiled("\"none\"", "\"nine\"")); });
  refuses("another value in the data", "INVALID_FILE", {"tensor \"b\"", "the file is damaged"},
          [&] { read(spoiled("\4\5", "\4\6")); });
  refuses("a list of too few checksums", "INVALID_FILE", {"looplm.xxh64.tensors", "must be 2 checksums"}, [&] {
    parse(image(
        R"({"__metadata__":{"looplm.xxh64.tensors":"0123456789abcdef"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
        R"("b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
        2));
  });
  claim("a file of others is read unchecked",
        !parse(image(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)).tensors.at("a").checksum);
}

}  // namespace
}  // namespace looplm::test
