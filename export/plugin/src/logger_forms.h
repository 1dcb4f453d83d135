// The two binary forms of TensorRT's logger and of what finds it. TensorRT 11, and TensorRT for RTX
// 1.7, made both versioned interfaces: their methods moved behind those of IVersionedInterface in
// the table of virtual functions. The headers a library is compiled with know one form alone, and
// the TensorRT that loads it may have the other; so both are declared here, to be called and never
// derived from.
#pragma once

#include <NvInferRuntime.h>

namespace bilateral {

// NOLINTBEGIN(cppcoreguidelines-special-member-functions): nobody makes or copies one.

// Until TensorRT 10.
class PlainLogger {
 public:
  virtual void log(nvinfer1::ILogger::Severity severity,
                   const nvinfer1::AsciiChar* message) noexcept = 0;

 protected:
  ~PlainLogger() = default;
};

class PlainFinder {
 public:
  virtual PlainLogger* findLogger() = 0;

 protected:
  ~PlainFinder() = default;
};

// NOLINTEND(cppcoreguidelines-special-member-functions)

// From TensorRT 11 on.
class VersionedLogger : public nvinfer1::IVersionedInterface {
 public:
  virtual void log(nvinfer1::ILogger::Severity severity,
                   const nvinfer1::AsciiChar* message) noexcept = 0;
};

class VersionedFinder : public nvinfer1::IVersionedInterface {
 public:
  virtual VersionedLogger* findLogger() = 0;
};

}  // namespace bilateral
