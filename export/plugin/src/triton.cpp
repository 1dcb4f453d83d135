// Registration in Triton Inference Server, whose TensorRT backend opens the libraries it is given
// (--backend-config=tensorrt,plugins=...) and does nothing else with them.
#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace bilateral {
namespace {

// What of a process matters here: TensorRT's path as the loader has it, and its version.
struct LoadedLibraries {
  std::string tensorrt;
  int32_t tensorrtMajor = 0;
  bool tritonBackend = false;
};

constexpr const char* kOwnName = "libbilateral_attention.so";
constexpr const char* kTensorRT = "libnvinfer.so.";
constexpr const char* kTritonBackend = "libtriton_tensorrt.so";

const char* baseName(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

// NOLINTNEXTLINE(misc-const-correctness): dl_iterate_phdr calls it
int note(dl_phdr_info* info, size_t /*size*/, void* data) {
  auto& found = *static_cast<LoadedLibraries*>(data);
  const char* name = baseName(info->dlpi_name);
  if (std::strncmp(name, kTensorRT, std::strlen(kTensorRT)) == 0) {
    found.tensorrt = info->dlpi_name;
    found.tensorrtMajor =
        static_cast<int32_t>(std::strtol(name + std::strlen(kTensorRT), nullptr, 10));
  }
  found.tritonBackend = found.tritonBackend || std::strcmp(name, kTritonBackend) == 0;
  return 0;
}

LoadedLibraries loadedLibraries() {
  LoadedLibraries found;
  dl_iterate_phdr(note, &found);
  return found;
}

// Where TensorRT's plugin registry keeps loadLibrary in its table of virtual functions. The class
// is no versioned interface: TensorRT 11 removed four functions before it. -1 for other versions.
int32_t loadLibrarySlot(int32_t tensorrtMajor) {
  switch (tensorrtMajor) {
    case 10:
      return 10;
    case 11:
      return 6;
    default:
      return -1;
  }
}

void complain(const std::string& what) {
  const std::string line = "ai.bilateral: the plugin is not registered: " + what + "\n";
  static_cast<void>(std::fputs(line.c_str(), stderr));
}

// Lets TensorRT load this very library once more, which finds it loaded, and register its creator.
void registerFrom(const char* path, const LoadedLibraries& loaded) {
  const int32_t slot = loadLibrarySlot(loaded.tensorrtMajor);
  void* library = dlopen(loaded.tensorrt.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  using Registry = void* (*)();
  const auto registry = library == nullptr
                            ? nullptr
                            : reinterpret_cast<Registry>(dlsym(library, "getPluginRegistry"));
  if (slot < 0 || registry == nullptr) {
    complain("this TensorRT is not known to it; build the plan with --embed-plugin");
    return;
  }
  void* object = registry();  // NOLINT(misc-const-correctness): the function called changes it
  using LoadLibrary = void* (*)(void*, const char*);
  const LoadLibrary* table = *static_cast<const LoadLibrary* const*>(object);
  if (table[slot](object, path) == nullptr) {
    complain("TensorRT refuses it");
  }
}

// Where TensorRT loads this library, it registers it as well; where Triton opened it, nobody does.
// The copy that TensorRT unpacks from a plan has another name.
__attribute__((constructor)) void registerInTriton() {
  Dl_info own{};
  if (dladdr(reinterpret_cast<const void*>(&registerInTriton), &own) == 0 ||
      std::strcmp(baseName(own.dli_fname), kOwnName) != 0) {
    return;
  }
  const LoadedLibraries loaded = loadedLibraries();
  if (loaded.tritonBackend && loaded.tensorrtMajor != 0) {
    registerFrom(own.dli_fname, loaded);
  }
}

}  // namespace
}  // namespace bilateral
