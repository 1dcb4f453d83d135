// What TensorRT looks up in the shared library; nothing else is exported.
#include <NvInferRuntime.h>

#include "kernels.h"
#include "log.h"
#include "plugin.h"

#define BILATERAL_EXPORT extern "C" __attribute__((visibility("default")))

BILATERAL_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  bilateral::setLoggerFinder(finder);
}

BILATERAL_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static bilateral::Creator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}

// What this library holds, as JSON, for tools that have no TensorRT.
BILATERAL_EXPORT const char* bilateralPluginContents() { return bilateral::kContents; }
