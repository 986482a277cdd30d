// The first bytes choose what to ask the reader, in order; the rest is its text. The reader either answers or throws
// SyntaxError. A string that it returns must be the same after quoting and reading it again.
#include <cstdlib>
#include <string>

#include "../../engine/json.h"
#include "fuzz.h"

namespace looplm::fuzz {

namespace {

constexpr size_t questions = 8, deepest = 32;

void check_string(const std::string& text) {
  const std::string quoted = json::quote(text);
  json::Reader again(quoted);
  if (again.string() != text) std::abort();
  again.end();
  if (json::quote_briefly(text).size() > quoted.size() + 3) std::abort();
}

struct Examiner {
  json::Reader reader;
  const uint8_t* script;
  size_t next = 0;

  void ask(size_t depth) {
    if (depth == deepest) throw json::SyntaxError("nested too deeply");
    switch (script[next++ % questions] % 4) {
      case 0:
        return check_string(reader.string());
      case 1:
        if (reader.natural_number() < 0) std::abort();
        return;
      case 2:
        return reader.object([&](const std::string& key) {
          check_string(key);
          ask(depth + 1);
        });
      default:
        return reader.array([&] { ask(depth + 1); });
    }
  }
};

}  // namespace

void json(const uint8_t* data, size_t size) {
  if (size < questions) return;
  try {
    Examiner examiner{json::Reader({reinterpret_cast<const char*>(data) + questions, size - questions}), data};
    examiner.ask(0);
    examiner.reader.end();
  } catch (const json::SyntaxError&) {
  }
}

}  // namespace looplm::fuzz
