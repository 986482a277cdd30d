// A strict reader of JSON from untrusted bytes (RFC 8259), driven by whoever knows what should come: the caller asks for a
// string, an integer, an object or an array, and anything else is an error. So nothing is built that was not asked for, nesting
// is no deeper than the caller's questions, and memory stays in proportion to the text.
#pragma once
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace looplm::json {

struct SyntaxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Every function reads one value and the white space before it, or throws SyntaxError with the byte position.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::string string();      // valid UTF-8, escapes decoded
  int64_t natural_number();  // digits alone, at most 2^63 - 1
  void object(
      const std::function<void(const std::string& key)>& member);  // `member` reads the value; a key that comes twice is refused
  void array(const std::function<void()>& element);                // `element` reads one element
  void end();                                                      // nothing but white space may follow

 private:
  [[noreturn]] void fail(const std::string& what) const;
  char peek() const { return next_ < text_.size() ? text_[next_] : '\0'; }
  void skip_space();
  bool accept(char c);
  void expect(char c, const char* what);
  uint32_t hex4();
  void escape(std::string& out);
  void utf8(std::string& out);

  std::string_view text_;
  size_t next_ = 0;
};

// A JSON string literal of UTF-8 text.
std::string quote(std::string_view text);
// The same for error messages: what is long is cut.
std::string quote_briefly(std::string_view text);

}  // namespace looplm::json
