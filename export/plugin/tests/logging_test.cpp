// Errors reach TensorRT's logger in both of its binary forms (src/log.cpp), or else stderr.
#include <unistd.h>

#include "fixtures.h"

namespace {

using nvinfer1::AsciiChar;
using Severity = nvinfer1::ILogger::Severity;

// As until TensorRT 10: the methods are the first of the class.
struct PlainForm {
  struct Logger {
    virtual void log(Severity /*severity*/, const AsciiChar* message) noexcept { last = message; }
    virtual ~Logger() = default;
    std::string last;
  };
  struct Finder {
    virtual Logger* findLogger() { return logger; }
    virtual ~Finder() = default;
    Logger* logger = nullptr;
  };
};

// As from TensorRT 11 on: versioned interfaces.
struct VersionedForm {
  struct Logger : nvinfer1::IVersionedInterface {
    [[nodiscard]] nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override {
      return {"ILogger", 1, 0};
    }
    virtual void log(Severity /*severity*/, const AsciiChar* message) noexcept { last = message; }
    std::string last;
  };
  struct Finder : nvinfer1::IVersionedInterface {
    [[nodiscard]] nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override {
      return {"ILoggerFinder", 1, 0};
    }
    virtual Logger* findLogger() { return logger; }
    Logger* logger = nullptr;
  };
};

// A finder with a second base class, as an implementation may have one.
struct OtherBase {
  virtual ~OtherBase() = default;
};
struct VersionedFormOfTwoBases {
  using Logger = VersionedForm::Logger;
  struct Finder : VersionedForm::Finder, OtherBase {};
};

void failToCreate() { CHECK(create(std::vector<PluginField>{}) == nullptr); }

template <typename Form>
std::string messageThrough() {
  typename Form::Logger logger;
  typename Form::Finder finder;
  finder.logger = &logger;
  setLoggerFinder(reinterpret_cast<nvinfer1::ILoggerFinder*>(&finder));
  failToCreate();
  setLoggerFinder(nullptr);
  return logger.last;
}

std::string onStandardError(void (*body)()) {
  int ends[2];
  CHECK_EQUAL(pipe(ends), 0);
  const int saved = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  body();
  dup2(saved, STDERR_FILENO);
  close(saved);
  close(ends[1]);
  char text[512] = {};
  const ssize_t length = read(ends[0], text, sizeof(text) - 1);
  close(ends[0]);
  return {text, static_cast<size_t>(length)};
}

TEST(a_message_reaches_loggers_of_either_form) {
  const std::string expected =
      "ai.bilateral::BilateralAttention: node attention: attribute scale is missing";
  CHECK_EQUAL(messageThrough<PlainForm>(), expected);
  CHECK_EQUAL(messageThrough<VersionedForm>(), expected);
  CHECK_EQUAL(messageThrough<VersionedFormOfTwoBases>(), expected);
}

TEST(without_a_logger_a_message_goes_to_stderr) {
  CHECK(onStandardError(failToCreate).find("scale is missing") != std::string::npos);
  static VersionedForm::Finder empty;
  setLoggerFinder(reinterpret_cast<nvinfer1::ILoggerFinder*>(&empty));
  CHECK(onStandardError(failToCreate).find("scale is missing") != std::string::npos);
  setLoggerFinder(nullptr);
}

}  // namespace
