#include "harness.h"

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorRTPhase;

std::string& lastError() {
  thread_local std::string message;
  return message;
}

// Keeps what the plugin says through TensorRT's logger: its reason when a call fails.
class Logger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override {
    if (severity <= Severity::kERROR) {
      lastError() = message;
    }
  }
  nvinfer1::ILogger* findLogger() override { return this; }
};

template <typename Function>
Function find(void* library, const char* name) {
  auto function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw std::runtime_error(std::string("the library has no ") + name);
  }
  return function;
}

nvinfer1::IPluginCreatorV3One& creatorOf(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw std::runtime_error(dlerror());
  }
  static Logger logger;
  find<void (*)(nvinfer1::ILoggerFinder*)>(library, "setLoggerFinder")(&logger);
  int32_t count = 0;  // NOLINT(misc-const-correctness): the function called changes it
  auto* const* creators =
      find<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>(library, "getCreators")(count);
  if (count != 1 ||
      std::strcmp(creators[0]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) {
    throw std::runtime_error("the library does not offer one creator of IPluginV3");
  }
  // NOLINTNEXTLINE(*-static-cast-downcast): its kind was read; type information is TensorRT's
  return *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[0]);
}

// The plugin's own message goes on; `what` is said only where it left none.
void require(bool good, const char* what) {
  if (!good) {
    throw std::runtime_error(lastError().empty() ? std::string(what) + " failed" : lastError());
  }
}

template <typename Interface>
Interface& capability(IPluginV3& plugin, PluginCapabilityType type) {
  auto* found = plugin.getCapabilityInterface(type);
  require(found != nullptr, "getCapabilityInterface");
  return *static_cast<Interface*>(found);
}

PluginTensorDesc described(const HarnessTensor& tensor) {
  PluginTensorDesc result{};
  result.type = static_cast<nvinfer1::DataType>(tensor.type);
  result.format = nvinfer1::TensorFormat::kLINEAR;
  result.scale = 1.0F;
  result.dims.nbDims = tensor.rank;
  std::copy_n(tensor.sizes, tensor.rank, result.dims.d);
  return result;
}

std::unique_ptr<IPluginV3> createPlugin(nvinfer1::IPluginCreatorV3One& creator,
                                        const PluginFieldCollection& fields, TensorRTPhase phase) {
  std::unique_ptr<IPluginV3> plugin(creator.createPlugin("harness", &fields, phase));
  require(plugin != nullptr, "createPlugin");
  return plugin;
}

std::unique_ptr<IPluginV3> createFromNode(nvinfer1::IPluginCreatorV3One& creator,
                                          const HarnessNode& node) {
  const auto text = [](const char* value) { return static_cast<int32_t>(std::strlen(value)); };
  const std::vector<PluginField> fields{
      {"scale", &node.scale, PluginFieldType::kFLOAT32, 1},
      {"range_kernel", node.range, PluginFieldType::kCHAR, text(node.range)},
      {"spatial_kernel", node.spatial, PluginFieldType::kCHAR, text(node.spatial)},
      {"query_prefix", &node.queryPrefix, PluginFieldType::kINT32, 1},
      {"key_prefix", &node.keyPrefix, PluginFieldType::kINT32, 1},
      {"causal", &node.causal, PluginFieldType::kINT32, 1},
  };
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return createPlugin(creator, collection, TensorRTPhase::kBUILD);
}

}  // namespace

struct Harness {
  std::unique_ptr<IPluginV3> plugin;
  nvinfer1::IPluginV3OneRuntime* runtime = nullptr;
  std::vector<PluginTensorDesc> tensors;  // the inputs, then the output
  size_t workspaceBytes = 0;

  // As TensorRT builds: formats, types, the plugin's own checks, scratch memory.
  void build(IPluginV3& built, int32_t inputs) {
    auto& phase = capability<nvinfer1::IPluginV3OneBuild>(built, PluginCapabilityType::kBUILD);
    std::vector<DynamicPluginTensorDesc> dynamic;
    dynamic.reserve(tensors.size());
    for (const PluginTensorDesc& one : tensors) {
      dynamic.push_back({one, one.dims, one.dims, one.dims});
    }
    for (int32_t i = 0; i <= inputs; ++i) {
      require(phase.supportsFormatCombination(i, dynamic.data(), inputs, 1),
              "supportsFormatCombination");
    }
    const DynamicPluginTensorDesc* output = dynamic.data() + inputs;
    require(phase.configurePlugin(dynamic.data(), inputs, output, 1) == 0, "configurePlugin");
    workspaceBytes = phase.getWorkspaceSize(dynamic.data(), inputs, output, 1);
  }

  // As TensorRT runs: what was serialised makes another plugin, a context gets a copy of it.
  void attach(nvinfer1::IPluginCreatorV3One& creator, IPluginV3& built, int32_t inputs) {
    auto& written =
        capability<nvinfer1::IPluginV3OneRuntime>(built, PluginCapabilityType::kRUNTIME);
    const PluginFieldCollection* fields = written.getFieldsToSerialize();
    require(fields != nullptr, "getFieldsToSerialize");
    const auto read = createPlugin(creator, *fields, TensorRTPhase::kRUNTIME);
    plugin.reset(capability<nvinfer1::IPluginV3OneRuntime>(*read, PluginCapabilityType::kRUNTIME)
                     .attachToContext(nullptr));
    require(plugin != nullptr, "attachToContext");
    runtime = &capability<nvinfer1::IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
    require(runtime->onShapeChange(tensors.data(), inputs, tensors.data() + inputs, 1) == 0,
            "onShapeChange");
  }
};

Harness* harnessCreate(const char* library, const HarnessNode* node, const HarnessTensor* inputs,
                       int32_t count) {
  lastError().clear();
  try {
    auto& creator = creatorOf(library);
    auto harness = std::make_unique<Harness>();
    std::transform(inputs, inputs + count, std::back_inserter(harness->tensors), described);
    harness->tensors.push_back(harness->tensors.front());  // the output is like the query
    const auto built = createFromNode(creator, *node);
    harness->build(*built, count);
    harness->attach(creator, *built, count);
    return harness.release();
  } catch (const std::exception& error) {
    lastError() = error.what();
    return nullptr;
  }
}

size_t harnessWorkspaceBytes(const Harness* harness) { return harness->workspaceBytes; }

// NOLINTNEXTLINE(misc-const-correctness): the interface's type
double harnessEnqueue(Harness* harness, const void* const* inputs, void* output, void* workspace,
                      void* stream, int32_t repetitions) {
  lastError().clear();
  const PluginTensorDesc* tensors = harness->tensors.data();
  const PluginTensorDesc* outputTensor = tensors + harness->tensors.size() - 1;
  const auto begin = std::chrono::steady_clock::now();
  for (int32_t i = 0; i < repetitions; ++i) {
    if (harness->runtime->enqueue(tensors, outputTensor, inputs, &output, workspace,
                                  static_cast<cudaStream_t>(stream)) != 0) {
      return -1.0;
    }
  }
  const std::chrono::duration<double, std::nano> passed = std::chrono::steady_clock::now() - begin;
  return passed.count() / std::max(repetitions, 1);
}

// NOLINTNEXTLINE(misc-const-correctness): the interface's type
void harnessDestroy(Harness* harness) { const std::unique_ptr<Harness> owned(harness); }

const char* harnessError() { return lastError().c_str(); }
