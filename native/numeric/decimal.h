// A number in a message, with six digits at most. Streams of the standard library would add half a megabyte to the addon.
#pragma once
#include <cstdio>
#include <string>

namespace looplm {

inline std::string decimal(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

}  // namespace looplm
