// A strict JSON reader for untrusted bytes (RFC 8259). The caller asks for the value that must come next: a string, an
// integer, an object or an array. Anything else is an error. So nothing unexpected is ever built, nesting is no deeper than
// the caller's own calls, and memory stays proportional to the text.
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

// Every function reads one value and the white space before it. On a mismatch it throws SyntaxError with the byte position.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::string string();                                                    // valid UTF-8, escapes decoded
  int64_t natural_number();                                                // only digits, at most 2^63 - 1
  void object(const std::function<void(const std::string& key)>& member);  // `member` reads the value; no key twice
  void array(const std::function<void()>& element);                        // `element` reads one element
  void end();                                                              // only white space may follow

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
// The same for error messages: long text is cut.
std::string quote_briefly(std::string_view text);

}  // namespace looplm::json
