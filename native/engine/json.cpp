#include "json.h"

#include <cstdio>
#include <unordered_set>

namespace looplm::json {

namespace {

void append_utf8(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += char(code);
  } else if (code < 0x800) {
    out += {char(0xC0 | code >> 6), char(0x80 | (code & 63))};
  } else if (code < 0x10000) {
    out += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
  } else {
    out += {char(0xF0 | code >> 18), char(0x80 | (code >> 12 & 63)), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
  }
}

}  // namespace

void Reader::fail(const std::string& what) const { throw SyntaxError(what + " at byte " + std::to_string(next_)); }

void Reader::skip_space() {
  while (next_ < text_.size() && (text_[next_] == ' ' || text_[next_] == '\n' || text_[next_] == '\t' || text_[next_] == '\r'))
    next_++;
}

bool Reader::accept(char c) {
  skip_space();
  if (next_ == text_.size() || text_[next_] != c) return false;
  next_++;
  return true;
}

void Reader::expect(char c, const char* what) {
  if (!accept(c)) fail(std::string("expected ") + what);
}

int64_t Reader::natural_number() {
  skip_space();
  if (peek() < '0' || peek() > '9') fail("expected a non-negative integer");
  if (peek() == '0' && next_ + 1 < text_.size() && text_[next_ + 1] >= '0' && text_[next_ + 1] <= '9')
    fail("a number starts with 0");
  int64_t value = 0;
  for (; peek() >= '0' && peek() <= '9'; next_++)
    if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, peek() - '0', &value))
      fail("an integer above 2^63 - 1");
  if (peek() == '.' || peek() == 'e' || peek() == 'E') fail("expected a non-negative integer without fraction or exponent");
  return value;
}

uint32_t Reader::hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; i++, next_++) {
    const char c = peek();
    if (c >= '0' && c <= '9') value = value << 4 | uint32_t(c - '0');
    else if (c >= 'a' && c <= 'f') value = value << 4 | uint32_t(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F') value = value << 4 | uint32_t(c - 'A' + 10);
    else fail("expected four hexadecimal digits after \\u");
  }
  return value;
}

// Decodes an escape sequence; the backslash has been read.
void Reader::escape(std::string& out) {
  const char c = peek();
  next_++;
  switch (c) {
    case '"':
    case '\\':
    case '/':
      out += c;
      return;
    case 'b':
      out += '\b';
      return;
    case 'f':
      out += '\f';
      return;
    case 'n':
      out += '\n';
      return;
    case 'r':
      out += '\r';
      return;
    case 't':
      out += '\t';
      return;
    case 'u':
      break;
    default:
      next_--;
      fail("unknown escape in a string");
  }
  uint32_t code = hex4();
  if (code >= 0xDC00 && code < 0xE000) fail("a low surrogate without its high one");
  if (code >= 0xD800 && code < 0xDC00) {
    if (text_.substr(next_, 2) != "\\u") fail("a high surrogate without its low one");
    next_ += 2;
    const uint32_t low = hex4();
    if (low < 0xDC00 || low >= 0xE000) fail("a high surrogate without its low one");
    code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
  }
  append_utf8(out, code);
}

// Reads one character of more than one byte. Refuses overlong forms, surrogates and code points above U+10FFFF.
void Reader::utf8(std::string& out) {
  const auto byte = [&](size_t i) { return next_ + i < text_.size() ? uint8_t(text_[next_ + i]) : 0; };
  const uint8_t lead = byte(0);
  const size_t length = lead >= 0xC2 && lead < 0xE0 ? 2 : lead >= 0xE0 && lead < 0xF0 ? 3 : lead >= 0xF0 && lead < 0xF5 ? 4 : 0;
  if (length == 0) fail("invalid UTF-8");
  uint32_t code = lead & (0xFF >> (length + 1));
  for (size_t i = 1; i < length; i++) {
    if ((byte(i) & 0xC0) != 0x80) fail("invalid UTF-8");
    code = code << 6 | (byte(i) & 63);
  }
  if ((length == 3 && (code < 0x800 || (code >= 0xD800 && code < 0xE000))) ||
      (length == 4 && (code < 0x10000 || code > 0x10FFFF)))
    fail("invalid UTF-8");
  out += text_.substr(next_, length);
  next_ += length;
}

std::string Reader::string() {
  expect('"', "a string");
  std::string out;
  while (true) {
    if (next_ == text_.size()) fail("a string without its closing quote");
    const uint8_t c = uint8_t(text_[next_]);
    if (c < 0x20) fail("a control character in a string");
    if (c >= 0x80) {
      utf8(out);
      continue;
    }
    next_++;
    if (c == '"') return out;
    if (c == '\\') escape(out);
    else out += char(c);
  }
}

void Reader::object(const std::function<void(const std::string& key)>& member) {
  expect('{', "an object");
  std::unordered_set<std::string> keys;
  if (!accept('}')) {
    do {
      const std::string key = string();
      if (!keys.insert(key).second) fail("the key " + quote_briefly(key) + " comes twice");
      expect(':', "':'");
      member(key);
    } while (accept(','));
    expect('}', "',' or '}'");
  }
}

void Reader::array(const std::function<void()>& element) {
  expect('[', "an array");
  if (!accept(']')) {
    do element();
    while (accept(','));
    expect(']', "',' or ']'");
  }
}

void Reader::end() {
  skip_space();
  if (next_ != text_.size()) fail("unexpected text after the end");
}

std::string quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (uint8_t(c) < 0x20 || c == 0x7F) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", unsigned(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string quote_briefly(std::string_view text) {
  constexpr size_t longest = 120;
  if (text.size() <= longest) return quote(text);
  size_t cut = longest;
  while (cut > 0 && (text[cut] & 0xC0) == 0x80) cut--;  // do not cut inside a character
  return quote(text.substr(0, cut)) + "...";
}

}  // namespace looplm::json
