// The little that the tests need of a test framework: cases by name, checks that say what failed.
#pragma once

#include <cstdio>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Case {
  const char* name;
  void (*body)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registered {
  Registered(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::ostringstream text;
  text << file << ":" << line << ": " << what;
  throw std::runtime_error(text.str());
}

template <typename A, typename B>
void equal(const A& got, const B& expected, const char* expression, const char* file, int line) {
  if (!(got == expected)) {
    std::ostringstream text;
    text << expression << " is " << got << ", expected " << expected;
    fail(file, line, text.str());
  }
}

// Runs the named cases, all if none is named; the number of failures.
inline int run(int count, const char* const* names) {
  int failures = 0;
  for (const Case& one : cases()) {
    bool wanted = count == 0;
    for (int i = 0; i < count; ++i) {
      wanted = wanted || std::strcmp(names[i], one.name) == 0;
    }
    if (!wanted) {
      continue;
    }
    try {
      one.body();
      std::printf("ok %s\n", one.name);
    } catch (const std::exception& error) {
      std::printf("FAIL %s: %s\n", one.name, error.what());
      ++failures;
    }
  }
  return failures;
}

}  // namespace check

#define TEST(name)                                               \
  static void name();                                            \
  static const check::Registered registered_##name(#name, name); \
  static void name()
#define CHECK(condition)                                       \
  do {                                                         \
    if (!(condition)) {                                        \
      check::fail(__FILE__, __LINE__, #condition " is false"); \
    }                                                          \
  } while (false)
#define CHECK_EQUAL(got, expected) check::equal(got, expected, #got, __FILE__, __LINE__)
