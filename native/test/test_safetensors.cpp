// What a checkpoint promises: malformed files are refused with the field's name, values survive the way to disk and back, and a
// failed write leaves nothing behind. One line per claim; the exit status is 1 when one does not hold.
#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <random>

#include "../engine/half.h"
#include "../engine/optimizer.h"
#include "../engine/safetensors.h"
#include "../engine/xxh64.h"
#include "small_architecture.h"

namespace looplm {
namespace {

int failures = 0;

void claim(const std::string& name, bool holds, const std::string& detail = "") {
  failures += !holds;
  std::printf("%s %s%s%s\n", holds ? "ok" : "not ok", name.c_str(), holds || detail.empty() ? "" : ": ",
              holds ? "" : detail.c_str());
}

// The action throws an Error of this code whose message has every one of the parts.
void refuses(const std::string& name, const std::string& code, const std::vector<std::string>& parts,
             const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    bool named = error.code == code;
    for (const std::string& part : parts) named &= std::string(error.what()).find(part) != std::string::npos;
    return claim(name, named, error.code + " " + error.what());
  }
  claim(name, false, "nothing was refused");
}

std::string image(const std::string& header, size_t data_bytes) {
  std::string out(8, '\0');
  for (int i = 0; i < 8; i++) out[size_t(i)] = char(uint64_t(header.size()) >> 8 * i);
  return out + header + std::string(data_bytes, '\0');
}

SafetensorsContents parse(const std::string& file) {
  const std::vector<char> exact(file.begin(), file.end());  // no byte behind the end, so that a sanitizer sees an overrun
  return parse_safetensors("the.file", exact.data(), exact.size());
}

// ---- headers

struct Header {
  const char *name, *text;
  size_t data_bytes;
  const char* says;  // a part of the message
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

void test_malformed_headers() {
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

  // Every prefix of a good header is refused, whatever it is cut at.
  const std::string good = R"({"__metadata__":{"k":"v\u00e9"},"a":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]}})";
  size_t refused = 0;
  for (size_t n = 0; n < good.size(); n++) try {
      parse(image(good.substr(0, n), 2));
    } catch (const Error& error) {
      refused += error.code == "INVALID_FILE";
    }
  claim("refused: every prefix of a good header", refused == good.size() && parse(image(good, 2)).tensors.size() == 1);
}

void test_long_names_in_messages() {
  const std::string name(1'000'000, 'x');
  try {
    parse(image("{\"" + name + "\":1}", 0));
    claim("a message cuts a long name", false);
  } catch (const Error& error) {
    claim("a message cuts a long name", std::strlen(error.what()) < 300, error.what());
  }
}

void test_good_headers() {
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

// ---- halves

// The neighbour of x among the values of `table` (ascending), ties to the one whose bits are even.
uint16_t nearest(const std::function<double(uint16_t)>& value, uint16_t largest, double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::abs(x);
  uint16_t low = 0, high = uint16_t(largest + 1);  // value(high): the power of two behind the largest, standing for infinity
  while (high - low > 1) {
    const uint16_t middle = uint16_t((low + high) / 2);
    (value(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - value(low), above = value(high) - magnitude;
  if (magnitude >= value(high)) return sign | high;
  return sign | (below < above || (below == above && low % 2 == 0) ? low : high);
}

void test_halves() {
  // By the definition of the formats: sign, exponent, fraction.
  const auto f16 = [](uint16_t b) {
    const int exponent = b >> 10 & 31, fraction = b & 1023;
    return exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  };
  const auto bf16 = [](uint16_t b) {
    const int exponent = b >> 7 & 255, fraction = b & 127;
    return exponent ? std::ldexp(128 + fraction, exponent - 134) : std::ldexp(fraction, -133);
  };
  bool f16_values = true, f16_trip = true, bf16_values = true, bf16_trip = true;
  for (uint32_t i = 0; i < 65536; i++) {
    const uint16_t bits = uint16_t(i), magnitude = bits & 0x7FFF;
    const double sign = bits >> 15 ? -1 : 1;
    const float a = f16_to_float(bits), b = bf16_to_float(bits);
    if (magnitude < 0x7C00) f16_values &= double(a) == sign * f16(magnitude) && std::signbit(a) == (bits >> 15);
    if (magnitude == 0x7C00) f16_values &= double(a) == sign * INFINITY;
    if (magnitude > 0x7C00) f16_values &= std::isnan(a);
    f16_trip &= magnitude > 0x7C00 ? (float_to_f16(a) & 0x7FFF) > 0x7C00 : float_to_f16(a) == bits;
    if (magnitude < 0x7F80) bf16_values &= double(b) == sign * bf16(magnitude) && std::signbit(b) == (bits >> 15);
    if (magnitude == 0x7F80) bf16_values &= double(b) == sign * INFINITY;
    if (magnitude > 0x7F80) bf16_values &= std::isnan(b);
    bf16_trip &= magnitude > 0x7F80 ? (float_to_bf16(b) & 0x7FFF) > 0x7F80 : float_to_bf16(b) == bits;
  }
  claim("F16: every bit pattern has its value", f16_values);
  claim("F16: every bit pattern survives float32", f16_trip);
  claim("BF16: every bit pattern has its value", bf16_values);
  claim("BF16: every bit pattern survives float32", bf16_trip);

  // Float32 values that are hard to round: on, and one step beside, the middle of every two neighbours; and any bits at all.
  bool f16_nearest = true, bf16_nearest = true;
  const auto check = [&](float x) {
    f16_nearest &= float_to_f16(x) == nearest(f16, 0x7BFF, double(x));
    bf16_nearest &= float_to_bf16(x) == nearest(bf16, 0x7F7F, double(x));
  };
  for (uint16_t b = 0; b < 0x7C00; b++)
    for (const float middle : {float((f16(b) + f16(uint16_t(b + 1))) / 2), -float((f16(b) + f16(uint16_t(b + 1))) / 2)})
      for (const float x : {middle, std::nextafter(middle, INFINITY), std::nextafter(middle, -INFINITY)}) check(x);
  for (uint16_t b = 0; b < 0x7F7F; b++)
    for (const float middle : {float((bf16(b) + bf16(uint16_t(b + 1))) / 2), -float((bf16(b) + bf16(uint16_t(b + 1))) / 2)})
      for (const float x : {middle, std::nextafter(middle, INFINITY), std::nextafter(middle, -INFINITY)}) check(x);
  std::mt19937 random(7);
  for (int i = 0; i < 200'000; i++) {
    const float x = std::bit_cast<float>(uint32_t(random()));
    if (std::isfinite(x)) check(x);
  }
  check(std::numeric_limits<float>::max());
  check(65519.996f);
  check(65520.0f);
  claim("F16: float32 rounds to the nearest, ties to even", f16_nearest);
  claim("BF16: float32 rounds to the nearest, ties to even", bf16_nearest);
  const float nan = std::bit_cast<float>(0x7F800001u);  // its payload lies in the bits that are cut off
  claim("a NaN stays a NaN", float_to_bf16(nan) == 0x7FC0 && float_to_f16(nan) == 0x7E00 && float_to_f16(-INFINITY) == 0xFC00);
}

void test_first_not_finite() {
  bool found = true;
  for (const size_t at : {size_t(0), size_t(4095), size_t(4096), size_t(9999)}) {
    std::vector<float> f32(10000, 1.0f);
    std::vector<uint16_t> bf16(10000, 0x7F7F), f16(10000, 0x7BFF);
    std::vector<double> f64(10000, -1e308);
    found &= first_not_finite(LOOP_F32, f32.data(), 10000) == 10000 && first_not_finite(LOOP_BF16, bf16.data(), 10000) == 10000 &&
             first_not_finite(LOOP_F16, f16.data(), 10000) == 10000 && first_not_finite(LOOP_F64, f64.data(), 10000) == 10000;
    f32[at] = -INFINITY;
    bf16[at] = 0x7F80;
    f16[at] = 0xFC01;
    f64[at] = NAN;
    found &= first_not_finite(LOOP_F32, f32.data(), 10000) == at && first_not_finite(LOOP_BF16, bf16.data(), 10000) == at &&
             first_not_finite(LOOP_F16, f16.data(), 10000) == at && first_not_finite(LOOP_F64, f64.data(), 10000) == at;
  }
  claim("the first NaN or infinity is found, wherever it is", found);
}

// ---- files

struct Folder {
  Folder() {
    char name[] = "/tmp/looplm-test-XXXXXX";
    if (!mkdtemp(name)) std::abort();
    path = name;
  }
  ~Folder() {
    for (const std::string& name : names()) ::unlink((path + "/" + name).c_str());
    ::rmdir(path.c_str());
  }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    DIR* dir = ::opendir(path.c_str());
    for (const dirent* entry; (entry = ::readdir(dir));)
      if (entry->d_name[0] != '.') out.push_back(entry->d_name);
    ::closedir(dir);
    return out;
  }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  std::string path;
};

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

SafetensorsOutput output(const std::string& name, const std::string& dtype, std::vector<int64_t> shape,
                         std::vector<uint8_t> bytes) {
  return {name, dtype, std::move(shape),
          [bytes = std::move(bytes)](uint8_t* out) { std::copy(bytes.begin(), bytes.end(), out); }};
}

template <class T>
std::vector<uint8_t> bytes_of(const std::vector<T>& values) {
  std::vector<uint8_t> out(values.size() * sizeof(T));
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

void test_files() {
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

  // A full disk, by a limit on the size of files.
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
  if (::geteuid() != 0) {  // root may write everywhere
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

// ---- checksums

void test_xxh64() {
  // What the reference implementation (xxhash 4.0.1 for Python) says of bytes i * 37 + 11 mod 256.
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

void test_checksums() {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  write_safetensors(path, {output("a", "U8", {3}, {1, 2, 3}), output("none", "U8", {0}, {}), output("b", "U8", {2}, {4, 5})},
                    {{"step", "12"}});
  const std::string good = contents(path);
  // What a reader takes from the file, checked, in a form to compare.
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

// ---- models

SmallSizes small_config(bool tied) { return {11, 6, 5, 2, 3, 1, 2, 2, tied, 0.3}; }

std::shared_ptr<Model> small_model(const std::string& device, LoopDType dt, bool tied = false, uint64_t seed = 1) {
  auto model = std::make_shared<Model>(std::make_shared<Device>(device, 2), dt, small_architecture(small_config(tied)));
  model->initialize(seed);
  return model;
}

std::vector<uint8_t> all_raw(const Model& model) {
  std::vector<uint8_t> out;
  for (const Parameter& p : model.parameters()) {
    std::vector<uint8_t> raw(p.count * loop_dtype_size(model.dt));
    model.read_raw(p, raw.data());
    out.insert(out.end(), raw.begin(), raw.end());
  }
  return out;
}

// Every parameter as float64, rounded on the way by `round`.
std::vector<double> all_values(
    const Model& model, const std::function<double(double)>& round = [](double x) { return x; }) {
  std::vector<double> out;
  for (const Parameter& p : model.parameters())
    for (const double x : model.read(p)) out.push_back(round(x));
  return out;
}

double to_bf16(double x) { return double(bf16_to_float(float_to_bf16(float(x)))); }
double to_f32(double x) { return double(float(x)); }

// A model's parameters as outputs, which a test can then spoil.
std::vector<SafetensorsOutput> outputs(const Model& model, const std::string& dtype,
                                       const std::function<std::vector<uint8_t>(const std::vector<double>&)>& encode) {
  std::vector<SafetensorsOutput> out;
  for (const Parameter& p : model.parameters()) out.push_back(output(p.name, dtype, p.shape, encode(model.read(p))));
  return out;
}
std::vector<uint8_t> encode_f32(const std::vector<double>& v) { return bytes_of(std::vector<float>(v.begin(), v.end())); }
std::vector<uint8_t> encode_f16(const std::vector<double>& v) {
  std::vector<uint16_t> bits;
  for (const double x : v) bits.push_back(float_to_f16(float(x)));
  return bytes_of(bits);
}

void test_parameters() {
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

  {  // a header whose length is odd, so that nothing in the data is aligned
    save_parameters(*model, path, "F32");
    std::string file = contents(path);
    file.replace(file.find("looplm.xxh64\""), 6, "others");  // a header that was changed has no checksum
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

  {  // a tensor of more elements than are converted at a time
    SmallSizes config = small_config(true);
    config.vocabulary = 150'000, config.hidden = 2;
    const auto device = std::make_shared<Device>("cpu", 2);
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
  refuses("a tied model's file with a head of its own", "INVALID_FILE", {"lm_head.weight", "tie_word_embeddings"},
          [&] { load_parameters(*tied_copy, {path}); });

  refuses("no files", "INVALID_ARGUMENT", {"no file"}, [&] { load_parameters(*model, {}); });
  refuses("an F32 model is not saved as F64", "INVALID_ARGUMENT", {"not as \"F64\""},
          [&] { save_parameters(*model, path, "F64"); });
  refuses("a model is not saved as F16", "INVALID_ARGUMENT", {"not as \"F16\""}, [&] { save_parameters(*model, path, "F16"); });
}

// ---- the optimizer

void set_gradients(Model& model, uint64_t seed, double scale) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, scale);
  model.gradients();
  for (const Parameter& p : model.parameters()) {
    std::vector<double> wide(p.count);
    for (double& x : wide) x = double(float(normal(random)));
    const std::vector<float> narrow(wide.begin(), wide.end());
    const void* values = model.real() == LOOP_F64 ? static_cast<const void*>(wide.data()) : narrow.data();
    model.device->run(&LoopBackend::copy_in, "copy_in", model.gradient_data(p), values, p.count * loop_dtype_size(model.real()));
  }
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); i++) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

void test_optimizer_on(const std::string& device, LoopDType dt) {
  const std::string on = std::string(" (") + device + ", " + safetensors_dtype(dt) + ")";
  const Folder folder;
  const AdamWOptions options{
      .learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1, .max_grad_norm = 1};
  const auto model = small_model(device, dt);
  AdamW optimizer(model);

  // math.md §6 in float64, written out.
  std::vector<double> truth = all_values(*model), m(truth.size()), v(truth.size());
  std::vector<bool> decays;
  for (const Parameter& p : model->parameters()) decays.insert(decays.end(), p.count, p.shape.size() > 1);
  bool norms = true;
  for (int step = 1; step <= 4; step++) {
    set_gradients(*model, uint64_t(step), step == 2 ? 1e-4 : 1);  // the second is not clipped
    std::vector<double> g;
    for (const Parameter& p : model->parameters())
      for (const double x : model->read_gradient(p)) g.push_back(x);
    double squares = 0;
    for (const double x : g) squares += x * x;
    const double norm = std::sqrt(squares), factor = std::min(1.0, 1 / (norm + 1e-6));
    for (size_t i = 0; i < g.size(); i++) {
      m[i] = 0.9 * m[i] + 0.1 * g[i] * factor;
      v[i] = 0.95 * v[i] + 0.05 * g[i] * factor * g[i] * factor;
      truth[i] -= 0.01 * (m[i] / (1 - std::pow(0.9, step)) / (std::sqrt(v[i] / (1 - std::pow(0.95, step))) + 1e-8) +
                          (decays[i] ? 0.1 * truth[i] : 0));
    }
    const uint64_t version = model->version();
    norms &= std::abs(gradient_norm(*model) - norm) <= 1e-12 * norm && std::abs(optimizer.step(options) - norm) <= 1e-12 * norm;
    norms &= gradient_norm(*model) == 0 && model->version() > version && optimizer.steps() == step;
  }
  const double tolerance = dt == LOOP_F64   ? 1e-14
                           : dt == LOOP_F32 ? 1e-6
                                            : 0x1p-8;  // bfloat16: half a unit in the last place of numbers below 2
  const double difference = largest_difference(all_values(*model), truth);
  claim("AdamW follows its formula" + on, difference <= tolerance, std::to_string(difference));
  claim("AdamW returns the norm before clipping, clears the gradients and counts" + on, norms);

  // A resumed run equals an uninterrupted one.
  const std::string parameters = folder / "model.safetensors", state = folder / "optimizer.safetensors";
  save_parameters(*model, parameters, safetensors_dtype(dt));
  optimizer.save(state);
  const auto resumed = small_model(device, dt, false, 77);
  AdamW resumed_optimizer(resumed);
  load_parameters(*resumed, {parameters});
  resumed_optimizer.load(state);
  for (int step = 5; step <= 7; step++)
    for (const auto& [each, its] : {std::pair(model, &optimizer), std::pair(resumed, &resumed_optimizer)}) {
      set_gradients(*each, uint64_t(step), 1);
      its->step(options);
    }
  claim("a resumed run has the same bits" + on, all_raw(*model) == all_raw(*resumed) && resumed_optimizer.steps() == 7);
  optimizer.save(folder / "a");
  resumed_optimizer.save(folder / "b");
  claim("and so has its optimizer's file" + on, contents(folder / "a") == contents(folder / "b"));

  if (dt == LOOP_BF16) {  // small steps are kept in the masters, which bfloat16 alone would lose
    const auto slow = small_model(device, dt);
    AdamW slow_optimizer(slow);
    const double before = slow->read(slow->parameter("model.norm.weight"))[0];
    for (int step = 0; step < 20; step++) {
      slow->gradients();
      for (const Parameter& p : slow->parameters()) {
        const std::vector<float> ones(p.count, 1.0f);
        slow->device->run(&LoopBackend::copy_in, "copy_in", slow->gradient_data(p), static_cast<const void*>(ones.data()),
                          p.count * sizeof(float));
      }
      slow_optimizer.step({.learning_rate = 1e-3});
    }
    const double after = slow->read(slow->parameter("model.norm.weight"))[0];
    claim("twenty steps of 0.001 move a bfloat16 one by 0.02" + on, std::abs(before - after - 0.02) < 0.003,
          std::to_string(after));

    const Parameter& norm = slow->parameter("model.norm.weight");
    slow->write(norm, std::vector<double>(norm.count, 3.0).data());
    slow->gradients();
    slow_optimizer.step({.learning_rate = 0});
    claim("parameters written by others are not undone by the masters" + on,
          slow->read(norm) == std::vector<double>(norm.count, 3.0));
    slow->write(norm, std::vector<double>(norm.count, 2.0).data());
    slow_optimizer.save(folder / "stale");
    AdamW again(slow);
    again.load(folder / "stale");
    claim("nor do stale masters reach a file" + on, again.steps() == 21);

    slow->write(norm, std::vector<double>(norm.count, 4.0).data());
    refuses("masters of other parameters are refused" + on, "INVALID_FILE", {"master.model.norm.weight", "does not round"},
            [&] { again.load(folder / "stale"); });
  }

  // What is not finite.
  const std::vector<uint8_t> before = all_raw(*model);
  const auto culprit = [&](const std::string& name, double bad) {
    set_gradients(*model, 8, 1);
    const Parameter& p = model->parameter(name);
    const float narrow = float(bad);
    const void* value = model->real() == LOOP_F64 ? static_cast<const void*>(&bad) : &narrow;
    model->device->run(&LoopBackend::copy_in, "copy_in", model->gradient_data(p), value, loop_dtype_size(model->real()));
    refuses("a gradient of " + std::to_string(bad) + " in " + name + on, "NON_FINITE", {"step 8", name},
            [&] { optimizer.step(options); });
  };
  culprit("model.layers.1.mlp.up_proj.weight", NAN);
  culprit("model.early_exit_gate.bias", INFINITY);
  optimizer.save(folder / "c");
  claim("which changes nothing" + on,
        all_raw(*model) == before && contents(folder / "c") == contents(folder / "a") && optimizer.steps() == 7);

  // An abort does not fall between two parameters.
  std::atomic<bool> cancel{true};
  model->zero_gradients();
  set_gradients(*model, 9, 1);
  model->device->cancel = &cancel;
  refuses("an aborted step" + on, "ABORTED", {"aborted"}, [&] { optimizer.step(options); });
  claim("an aborted step keeps the cancel flag" + on, model->device->cancel == &cancel);
  model->device->cancel = nullptr;
  claim("an aborted step changes nothing" + on, all_raw(*model) == before && optimizer.steps() == 7 && gradient_norm(*model) > 0);

  // Files of something else.
  const auto other = small_model(device, dt, true);
  AdamW other_optimizer(other);
  refuses("a model's file is not an optimizer's" + on, "INVALID_FILE", {"no \"step\""}, [&] { optimizer.load(parameters); });
  refuses("another model's state" + on, "INVALID_FILE", {"lm_head.weight\": is not this model's"}, [&] {
    load_parameters(*resumed, {parameters});
    const auto tied = small_model(device, dt, true);
    save_parameters(*tied, folder / "tied", safetensors_dtype(dt));
    const SafetensorsFile file(state);
    std::vector<SafetensorsOutput> tensors;
    for (const auto& [name, entry] : file.tensors()) {
      const auto* begin = static_cast<const uint8_t*>(entry.data);
      const std::string parameter = name.substr(name.find('.') + 1);
      const bool mine = dt == LOOP_BF16 && name.starts_with("master.") && parameter != "lm_head.weight";
      if (mine) {
        const std::vector<double> values = tied->read(tied->parameter(parameter));
        tensors.push_back(output(name, entry.dtype, entry.shape, encode_f32(values)));
      } else {
        tensors.push_back(output(name, entry.dtype, entry.shape, std::vector<uint8_t>(begin, begin + entry.bytes)));
      }
    }
    write_safetensors(folder / "longer", tensors, file.metadata());
    AdamW(tied).load(folder / "longer");
  });
  other_optimizer.save(folder / "short");
  refuses("state that is missing" + on, "INVALID_FILE", {"lm_head.weight\": is missing"}, [&] {
    const SafetensorsFile file(state);
    std::vector<SafetensorsOutput> tensors;
    for (const auto& [name, entry] : file.tensors()) {
      const auto* begin = static_cast<const uint8_t*>(entry.data);
      if (name != "second.lm_head.weight")
        tensors.push_back(output(name, entry.dtype, entry.shape, std::vector<uint8_t>(begin, begin + entry.bytes)));
    }
    write_safetensors(folder / "shorter", tensors, file.metadata());
    load_parameters(*resumed, {parameters});
    resumed_optimizer.load(folder / "shorter");
  });

  const auto load_spoiled = [&](const std::map<std::string, std::string>& changes, const std::string& spoiled, double value) {
    const SafetensorsFile file(state);
    std::map<std::string, std::string> metadata = file.metadata();
    for (const auto& [key, text] : changes) metadata[key] = text;
    std::vector<SafetensorsOutput> tensors;
    for (const auto& [name, entry] : file.tensors()) {
      const auto* begin = static_cast<const uint8_t*>(entry.data);
      std::vector<uint8_t> bytes(begin, begin + entry.bytes);
      const float narrow = float(value);
      if (name == spoiled)
        std::memcpy(bytes.data(), dt == LOOP_F64 ? static_cast<const void*>(&value) : &narrow, dt == LOOP_F64 ? 8 : 4);
      tensors.push_back(output(name, entry.dtype, entry.shape, bytes));
    }
    write_safetensors(folder / "spoiled", tensors, metadata);
    load_parameters(*resumed, {parameters});
    resumed_optimizer.load(folder / "spoiled");
  };
  for (const char* step : {"", "-1", "1.5", " 1", "1 ", "99999999999999999999", "four"})
    refuses("a step of \"" + std::string(step) + "\"" + on, "INVALID_FILE", {"\"step\"", "not a count"}, [&] {
      load_spoiled({{"step", step}}, "", 0);
    });
  refuses("state of another dtype" + on, "INVALID_FILE", {"\"dtype\": \"F17\", but the model is"}, [&] {
    load_spoiled({{"dtype", "F17"}}, "", 0);
  });
  refuses("a moment that is not finite" + on, "INVALID_FILE", {"first.model.norm.weight", "not finite"},
          [&] { load_spoiled({}, "first.model.norm.weight", NAN); });
  refuses("a negative second moment" + on, "INVALID_FILE", {"second.model.norm.weight", "negative"},
          [&] { load_spoiled({}, "second.model.norm.weight", -1); });
  claim("a refused file leaves the optimizer as it was" + on, resumed_optimizer.steps() == 7);
}

}  // namespace
}  // namespace looplm

int main() {
  using namespace looplm;
  try {
    test_malformed_headers();
    test_long_names_in_messages();
    test_good_headers();
    test_halves();
    test_first_not_finite();
    test_files();
    test_xxh64();
    test_checksums();
    test_parameters();
    for (const auto& [device, dt] : {std::pair("reference", LOOP_F64), std::pair("cpu", LOOP_F32), std::pair("cpu", LOOP_BF16)})
      test_optimizer_on(device, dt);
  } catch (const std::exception& error) {
    claim("no test throws", false, error.what());
  }
  std::printf("%d claims do not hold\n", failures);
  return failures != 0;
}
