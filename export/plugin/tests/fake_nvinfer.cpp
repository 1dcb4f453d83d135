// A stand-in for libnvinfer with the registry of the headers' version: it remembers which library
// it was asked to load. What the plugin does to find loadLibrary can so be checked against the
// compiler.
#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#include <string>

namespace {

class Registry final : public nvinfer1::IPluginRegistry {
 public:
#if NV_TENSORRT_MAJOR < 11
  bool registerCreator(nvinfer1::IPluginCreator& /*creator*/,
                       const char* /*space*/) noexcept override {
    return false;
  }
  nvinfer1::IPluginCreator* const* getPluginCreatorList(
      int32_t* /*count*/) const noexcept override {
    return nullptr;
  }
  nvinfer1::IPluginCreator* getPluginCreator(const char* /*name*/, const char* /*version*/,
                                             const char* /*space*/) noexcept override {
    return nullptr;
  }
  bool deregisterCreator(const nvinfer1::IPluginCreator& /*creator*/) noexcept override {
    return false;
  }
#endif
  void setErrorRecorder(nvinfer1::IErrorRecorder* /*recorder*/) noexcept override {}
  [[nodiscard]] nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override {
    return nullptr;
  }
  [[nodiscard]] bool isParentSearchEnabled() const override { return false; }
  void setParentSearchEnabled(bool /*enabled*/) override {}
  PluginLibraryHandle loadLibrary(const char* path) noexcept override {
    loaded += path;
    return this;
  }
  void deregisterLibrary(PluginLibraryHandle /*library*/) noexcept override {}
  bool registerCreator(nvinfer1::IPluginCreatorInterface& /*creator*/,
                       const char* /*space*/) noexcept override {
    return false;
  }
  nvinfer1::IPluginCreatorInterface* const* getAllCreators(
      int32_t* /*count*/) const noexcept override {
    return nullptr;
  }
  nvinfer1::IPluginCreatorInterface* getCreator(const char* /*name*/, const char* /*version*/,
                                                const char* /*space*/) noexcept override {
    return nullptr;
  }
  bool deregisterCreator(const nvinfer1::IPluginCreatorInterface& /*creator*/) noexcept override {
    return false;
  }
  nvinfer1::IPluginResource* acquirePluginResource(
      const char* /*key*/, nvinfer1::IPluginResource* /*resource*/) noexcept override {
    return nullptr;
  }
  int32_t releasePluginResource(const char* /*key*/) noexcept override { return 0; }
  nvinfer1::IPluginCreatorInterface* const* getAllCreatorsRecursive(
      int32_t* /*count*/) noexcept override {
    return nullptr;
  }

  std::string loaded;
};

Registry& registry() {
  static Registry theOnly;
  return theOnly;
}

}  // namespace

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &registry(); }
extern "C" const char* fakeNvinferLoaded() { return registry().loaded.c_str(); }
