// Messages to TensorRT's logger.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace bilateral {

// TensorRT hands its logger finder to the library right after loading it.
void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

// To TensorRT's logger; to stderr where there is none.
void logError(const std::string& message) noexcept;

// Runs `body`, which throws on bad input, behind TensorRT's noexcept interface: an exception
// becomes one logged line and `failure`.
template <typename Result, typename Body>
Result guarded(Result failure, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    logError(error.what());
  } catch (...) {
    logError("unknown error");
  }
  return failure;
}

}  // namespace bilateral
