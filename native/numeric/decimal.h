// Formats a number for a message, with at most six digits. Standard library streams would add half a megabyte to the addon.
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
